// How a byte-level BPE cuts a text into words before it merges: the pattern that the model was
// trained with, named in the file by tokenizer.ggml.pre.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/model/encode_stop.h"

namespace thermocline {

// One row of the table of pre-tokenizers.
struct PreTokenizerSpec {
  std::span<const std::string_view> names;
  std::span<const std::string_view> patterns;  // PCRE2; each cuts what the one before has left
  bool whole_words = false;                    // a word that is a token is taken without merging
  bool adds_bos = false;                       // where the file does not say
};

// All that are known; find by any of their names, nullptr if there is none.
std::span<const PreTokenizerSpec> pre_tokenizers();
const PreTokenizerSpec* find_pre_tokenizer(std::string_view name);

// Immutable, any thread; moves.
class PreTokenizer {
 public:
  static Result<PreTokenizer> create(std::span<const std::string_view> patterns);
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  // Cuts the text into words that together are the text. A pattern's matches are words, and so is
  // what lies between them. Stretches that are not valid UTF-8 are words of their own.
  Status split(std::string_view text, EncodeStop* stop, std::vector<std::string_view>* words) const;

 private:
  struct Pattern;
  struct Scratch;
  PreTokenizer();
  Status split_valid(std::string_view text, EncodeStop* stop, Scratch* scratch,
                     std::vector<std::string_view>* words) const;
  std::vector<Pattern> patterns_;
};

}  // namespace thermocline
