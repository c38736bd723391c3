// Vocabularies of a few hundred tokens, for tests and tiny models.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/support/gguf_writer.h"

namespace thermocline::test {

// Byte-level BPE: tokens 0 to 255 are the bytes in order, then come the results of the merges, then
// "<|endoftext|>", "<|im_start|>", "<|im_end|>" (control) and "[user]" (user-defined).
// BOS is <|endoftext|>, EOS <|im_end|>.
struct TinyBpe {
  std::string pre = "gpt-2";
  // GPT-2's spelling: a space is "Ġ".
  std::vector<std::pair<std::string, std::string>> merges = {
      {"h", "e"},   {"l", "l"}, {"he", "ll"}, {"hell", "o"}, {"Ġ", "w"},  {"a", "a"},
      {"aa", "aa"}, {"Ġ", "Ġ"}, {"1", "2"},   {"o", "r"},    {"Ġw", "or"}};
  std::string missing = {};  // bytes that no token stands for
  std::size_t size() const { return 256 + merges.size() + 4; }
};
void add_tokenizer(const TinyBpe& vocabulary, GgufWriter* file);
std::string byte_letter(unsigned char byte);  // GPT-2's spelling of a byte

// SentencePiece: <unk> 0, <s> 1, </s> 2, the byte tokens 3 to 258, then the pieces with scores -1,
// -2 ... in order. BOS is added.
struct TinySpm {
  bool space_prefix = true;
  bool byte_tokens = true;  // without them ids 3 to 258 are unused
  std::vector<std::string> pieces = {"▁",    "h",  "e",  "l",    "o",     "w",      "r",  "d",
                                     "a",    "he", "ll", "hell", "hello", "▁hello", "▁w", "or",
                                     "▁wor", "ld", "aa", "aaaa", "▁▁",    "é"};
  std::size_t size() const { return 259 + pieces.size(); }
};
void add_tokenizer(const TinySpm& vocabulary, GgufWriter* file);

}  // namespace thermocline::test
