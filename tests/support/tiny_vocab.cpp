#include "tests/support/tiny_vocab.h"

#include <cstdio>

#include "kernels/base/utf8.h"

namespace thermocline::test {
namespace {
constexpr std::int32_t kNormal = 1, kUnknown = 2, kControl = 3, kUser = 4, kUnused = 5, kByte = 6;
}

std::string byte_letter(unsigned char byte) {
  std::uint32_t next = 0x100;
  for (std::uint32_t b = 0; b < 256; ++b) {
    const bool plain = (b > 0x20 && b < 0x7f) || (b > 0xa0 && b != 0xad);
    const std::uint32_t code = plain ? b : next++;
    if (b != byte) continue;
    std::string out;
    append_utf8(code, &out);
    return out;
  }
  return "";
}

void add_tokenizer(const TinyBpe& vocabulary, GgufWriter* file) {
  std::vector<std::string> tokens, merges;
  for (int b = 0; b < 256; ++b) tokens.push_back(byte_letter(static_cast<unsigned char>(b)));
  for (const char c : vocabulary.missing) {
    std::string& token = tokens[static_cast<unsigned char>(c)];
    token = "[no " + token + "]";
  }
  for (const auto& [left, right] : vocabulary.merges) {
    tokens.push_back(left + right);
    merges.push_back(left + " " + right);
  }
  std::vector<std::int32_t> types(tokens.size(), kNormal);
  const auto first = static_cast<std::uint32_t>(tokens.size());
  for (const char* name : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) {
    tokens.push_back(name);
    types.push_back(kControl);
  }
  tokens.push_back("[user]");
  types.push_back(kUser);
  file->add_string("tokenizer.ggml.model", "gpt2").add_string("tokenizer.ggml.pre", vocabulary.pre);
  file->add_strings("tokenizer.ggml.tokens", tokens).add_i32s("tokenizer.ggml.token_type", types);
  file->add_strings("tokenizer.ggml.merges", merges);
  file->add_u32("tokenizer.ggml.bos_token_id", first);
  file->add_u32("tokenizer.ggml.eos_token_id", first + 2);
}

void add_tokenizer(const TinySpm& vocabulary, GgufWriter* file) {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<std::int32_t> types = {kUnknown, kControl, kControl};
  std::vector<float> scores(259, 0.0f);
  for (int b = 0; b < 256; ++b) {
    char name[16];
    std::snprintf(name, sizeof(name), vocabulary.byte_tokens ? "<0x%02X>" : "[no %02X]", b);
    tokens.push_back(name);
    types.push_back(vocabulary.byte_tokens ? kByte : kUnused);
  }
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    tokens.push_back(vocabulary.pieces[i]);
    types.push_back(kNormal);
    scores.push_back(-1.0f - static_cast<float>(i));
  }
  file->add_string("tokenizer.ggml.model", "llama").add_string("tokenizer.ggml.pre", "default");
  file->add_strings("tokenizer.ggml.tokens", tokens).add_f32s("tokenizer.ggml.scores", scores);
  file->add_i32s("tokenizer.ggml.token_type", types);
  file->add_u32("tokenizer.ggml.bos_token_id", 1).add_u32("tokenizer.ggml.eos_token_id", 2);
  file->add_u32("tokenizer.ggml.unknown_token_id", 0);
  file->add_bool("tokenizer.ggml.add_space_prefix", vocabulary.space_prefix);
}

}  // namespace thermocline::test
