// Text to token ids and back, as the model file says it is done: made from GGUF metadata
// (tokenizer.ggml.*), so there is no second file to disagree with the weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/stop_asked.h"

namespace thermocline {

class GgufFile;

// Whether "<|im_end|>" in a text is that one token or its ten characters. A template's markup is
// parsed; text from outside should not be.
enum class ParseSpecial : std::uint8_t { no, yes };
// Whether the file's own frame (BOS before, EOS after, where it asks for them) is put around.
enum class AddSpecial : std::uint8_t { no, yes };
// Whether control tokens are shown as their names when decoded, or leave no trace.
enum class ShowSpecial : std::uint8_t { no, yes };

// A stretch of a text that comes from several hands: a template's markup and a user's words.
struct TextPiece {
  std::string text;
  ParseSpecial parse = ParseSpecial::no;
};

// Immutable once made: any thread may use it. It owns all it needs and outlives the GgufFile.
class Tokenizer {
 public:
  // unsupported: a tokenizer.ggml.model or .pre that is not known, named, with the known ones;
  // corrupt / not_found: metadata that is missing or contradicts itself.
  static Result<Tokenizer> create(const GgufFile& file);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Any bytes are accepted. Byte-level BPE gives back exactly the bytes it was given, valid UTF-8
  // or not; SentencePiece does so through its byte tokens. corrupt: a text that the vocabulary
  // cannot spell at all (no byte tokens, no unknown token); cancelled: `stop` said yes. `left_out`:
  // how many bytes no token stands for, or only the unknown one.
  Result<std::vector<std::int32_t>> encode(std::string_view text, ParseSpecial parse,
                                           AddSpecial add = AddSpecial::yes,
                                           const StopAsked& stop = {},
                                           std::size_t* left_out = nullptr) const;
  // One text of several pieces: ordinary text merges across their borders, a control token is found
  // only within a piece that is parsed.
  Result<std::vector<std::int32_t>> encode(std::span<const TextPiece> pieces,
                                           AddSpecial add = AddSpecial::yes,
                                           const StopAsked& stop = {},
                                           std::size_t* left_out = nullptr) const;

  // The bytes of all tokens, one after another; not necessarily valid UTF-8 (see Detokenizer). The
  // space that SentencePiece puts before a text is taken away again. Ids outside the vocabulary
  // are an error.
  Result<std::string> decode(std::span<const std::int32_t> tokens,
                             ShowSpecial show = ShowSpecial::no) const;

  std::size_t size() const;  // of the vocabulary
  bool contains(std::int32_t token) const {
    return token >= 0 && static_cast<std::size_t>(token) < size();
  }
  // The bytes that a token stands for ("" for a control token that is not shown); contains(token).
  std::string_view bytes(std::int32_t token, ShowSpecial show = ShowSpecial::no) const;
  // The token as the file spells it ("Ġthe", "▁the", "<0x0A>"); contains(token).
  std::string_view name(std::int32_t token) const;
  // By that spelling: find("<|im_end|>").
  std::optional<std::int32_t> find(std::string_view name) const;

  std::optional<std::int32_t> bos() const;
  std::optional<std::int32_t> eos() const;
  std::optional<std::int32_t> eot() const;  // end of a turn, where it is not EOS: "<|eot_id|>"
  bool is_control(std::int32_t token) const;
  // Generation ends with it: EOS, end of turn, and the other names that models use for them.
  bool is_end(std::int32_t token) const;
  std::span<const std::int32_t> ends() const;  // all of those, ascending

  bool adds_bos() const;
  bool adds_eos() const;
  std::string_view kind() const;      // "bpe" or "spm"
  std::string_view pre() const;       // the pre-tokenizer's name, "" for spm
  bool strips_leading_space() const;  // decoding takes one space from the start of a text

 private:
  struct Parts;
  explicit Tokenizer(std::unique_ptr<const Parts> parts);
  std::unique_ptr<const Parts> parts_;
};

// Tokens to text as they come: what push() gives is always valid UTF-8. The bytes of a character
// that is not complete yet are held back; bytes that can never become one are shown as U+FFFD.
// One thread; the Tokenizer must outlive it.
class Detokenizer {
 public:
  // Where the next token is: at a text's start SentencePiece's leading space goes.
  enum class At : std::uint8_t { start, middle };
  explicit Detokenizer(const Tokenizer& tokenizer, At at = At::start,
                       ShowSpecial show = ShowSpecial::no);

  // Text that is complete after this token; often "". Ids outside the vocabulary give nothing.
  std::string push(std::int32_t token);
  // What was held back, shown as U+FFFD; afterwards as new, in the middle of a text.
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  ShowSpecial show_;
  bool strip_space_;
  std::string held_;  // at most 3 bytes of a character that has begun
};

}  // namespace thermocline
