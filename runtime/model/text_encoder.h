// One kind of tokenizer: what becomes of a stretch of text between special tokens, and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/model/encode_stop.h"

namespace thermocline {

class GgufFile;
class Vocabulary;

// What a text becomes.
struct Encoded {
  std::vector<std::int32_t> tokens = {};
  std::size_t bytes_left_out = 0;  // no token stands for them, or only the unknown one
};

// Immutable: any thread. The Vocabulary that it was made with must outlive it.
class TextEncoder {
 public:
  virtual ~TextEncoder() = default;
  virtual std::string_view kind() const = 0;
  virtual std::string_view pre() const = 0;  // "" where there is no pre-tokenizer
  // What the kind does where the file does not say.
  virtual bool adds_bos() const = 0;
  virtual bool adds_space_prefix() const = 0;
  // Appends what `text` becomes: never a control token, whatever it spells. `stop` is checked
  // for each word, merge and token.
  virtual Status encode(std::string_view text, EncodeStop* stop, Encoded* out) const = 0;
  // Appends the bytes that a normal token of this spelling stands for.
  virtual void append_bytes(std::string_view name, std::string* out) const = 0;
};

// Byte-level BPE with the file's merges and pre-tokenizer ("gpt2"), or BPE over raw UTF-8 with
// escaped spaces ("gemma4": Gemma 4's, which is read, and whose architecture no line has yet).
Result<std::unique_ptr<const TextEncoder>> make_bpe(const GgufFile& file,
                                                    const Vocabulary& vocabulary);
// SentencePiece's BPE: the pair of the highest score merges first ("llama").
Result<std::unique_ptr<const TextEncoder>> make_spm(const GgufFile& file,
                                                    const Vocabulary& vocabulary);

// SentencePiece spells a space as U+2581.
inline constexpr std::string_view kSpaceMark = "\xe2\x96\x81";
void append_marked(std::string_view text, std::string* out);    // " " becomes the mark
void append_unmarked(std::string_view text, std::string* out);  // and back

}  // namespace thermocline
