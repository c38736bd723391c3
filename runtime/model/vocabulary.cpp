#include "runtime/model/vocabulary.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include "runtime/model/gguf.h"
#include "runtime/model/quoted.h"

namespace thermocline {
namespace {

// What models call the end of a turn, the likeliest first.
constexpr std::string_view kTurnEnds[] = {
    "<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>",
    "<EOT>",      "[EOT]",      "<turn|>",       "<end_of_utterance>",
};
// Other names of tokens after which nothing should follow.
constexpr std::string_view kTextEnds[] = {
    "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "</s>",
    "<eos>",         "[EOS]",           "<|return|>", "<｜end▁of▁sentence｜>",
};

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The byte that "<0x0A>" stands for; -1 for any other text, "<0x-1>" included.
int byte_of(std::string_view name) {
  if (name.size() != 6 || !name.starts_with("<0x") || name[5] != '>') return -1;
  const int high = hex_digit(name[3]), low = hex_digit(name[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

}  // namespace

Result<Vocabulary> Vocabulary::read(const GgufFile& file) {
  Vocabulary out;
  TL_TRY(out.read_tokens(file));
  TL_TRY(out.read_types(file));
  TL_TRY(out.read_bytes(file));
  TL_TRY(out.read_roles(file));
  out.find_ends();
  return out;
}

Status Vocabulary::read_tokens(const GgufFile& file) {
  TL_TRY_ASSIGN(const auto names, file.get_array<std::string_view>("tokenizer.ggml.tokens"));
  if (names.empty())
    return fail(ErrorCode::corrupt, file.name(), ": tokenizer.ggml.tokens is empty");
  const std::size_t bytes = file.find("tokenizer.ggml.tokens")->bytes.size() - 8 * names.size();
  text_.reserve(bytes);
  starts_.reserve(names.size() + 1);
  slots_.assign(std::bit_ceil(names.size() * 2), kNoToken);
  starts_.push_back(0);
  types_.assign(names.size(), TokenType::normal);
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i].size() > kMaxTokenBytes)
      return fail(ErrorCode::corrupt, file.name(), ": tokenizer.ggml.tokens: token ", i, " has ",
                  names[i].size(), " bytes, more than the limit of ", kMaxTokenBytes);
    longest_ = std::max(longest_, names[i].size());
    text_ += names[i];
    starts_.push_back(static_cast<std::uint32_t>(text_.size()));
    if (names[i].empty()) continue;  // a hole in the numbering: never found, decodes to nothing
    std::size_t slot = std::hash<std::string_view>()(names[i]) & (slots_.size() - 1);
    for (; slots_[slot] != kNoToken; slot = (slot + 1) & (slots_.size() - 1))
      if (name(slots_[slot]) == names[i])
        return fail(ErrorCode::corrupt, file.name(), ": tokenizer.ggml.tokens: tokens ",
                    slots_[slot], " and ", i, " are both ", quoted(names[i]));
    slots_[slot] = static_cast<std::int32_t>(i);
  }
  return {};
}

std::int32_t Vocabulary::find(std::string_view text) const {
  if (text.empty() || text.size() > longest_) return kNoToken;
  std::size_t slot = std::hash<std::string_view>()(text) & (slots_.size() - 1);
  for (; slots_[slot] != kNoToken; slot = (slot + 1) & (slots_.size() - 1))
    if (name(slots_[slot]) == text) return slots_[slot];
  return kNoToken;
}

Status Vocabulary::read_types(const GgufFile& file) {
  const auto check_length = [&](std::string_view key, std::size_t length) -> Status {
    if (length == size()) return {};
    return fail(ErrorCode::corrupt, file.name(), ": ", key, " has ", length,
                " elements, tokenizer.ggml.tokens has ", size());
  };
  if (file.has("tokenizer.ggml.scores")) {
    TL_TRY_ASSIGN(scores_, file.get_array<float>("tokenizer.ggml.scores"));
    TL_TRY(check_length("tokenizer.ggml.scores", scores_.size()));
    const auto wrong =
        std::find_if(scores_.begin(), scores_.end(), [](float score) { return std::isnan(score); });
    if (wrong != scores_.end())  // NaN has no order: merging by score would not end well
      return fail(ErrorCode::corrupt, file.name(), ": tokenizer.ggml.scores: element ",
                  wrong - scores_.begin(), " is not a number");
  }
  if (!file.has("tokenizer.ggml.token_type")) return {};
  TL_TRY_ASSIGN(const auto types, file.get_array<std::int32_t>("tokenizer.ggml.token_type"));
  TL_TRY(check_length("tokenizer.ggml.token_type", types.size()));
  for (std::size_t i = 0; i < types.size(); ++i) {
    if (types[i] < 0 || types[i] > 6)
      return fail(ErrorCode::corrupt, file.name(), ": tokenizer.ggml.token_type: element ", i,
                  " is ", types[i], ", known are 0 to 6");
    types_[i] = types[i] == 0 ? TokenType::unused : static_cast<TokenType>(types[i]);
    const std::string_view text = name(static_cast<std::int32_t>(i));
    const bool special = types_[i] == TokenType::control || types_[i] == TokenType::user_defined;
    if (special && text.size() > kMaxSpecialBytes)
      return fail(ErrorCode::corrupt, file.name(), ": tokenizer.ggml.tokens: special token ", i,
                  " has ", text.size(), " bytes, more than the limit of ", kMaxSpecialBytes);
  }
  return {};
}

Status Vocabulary::read_bytes(const GgufFile& file) {
  byte_tokens.fill(kNoToken);
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(size()); ++i) {
    if (type(i) != TokenType::byte) continue;
    const int byte = byte_of(name(i));
    if (byte < 0)
      return fail(ErrorCode::corrupt, file.name(), ": tokenizer.ggml.tokens: byte token ", i,
                  " is ", quoted(name(i)), ", not \"<0x00>\" to \"<0xFF>\"");
    byte_tokens[static_cast<std::size_t>(byte)] = i;
  }
  return {};
}

Status Vocabulary::read_roles(const GgufFile& file) {
  const auto read_id = [&](std::string_view key, std::optional<std::int32_t>* out) -> Status {
    if (!file.has(key)) return {};
    TL_TRY_ASSIGN(const auto id, file.get<std::uint32_t>(key));
    if (id >= size())
      return fail(ErrorCode::corrupt, file.name(), ": ", key, " is ", id, ", there are ", size(),
                  " tokens");
    *out = static_cast<std::int32_t>(id);
    return {};
  };
  TL_TRY(read_id("tokenizer.ggml.bos_token_id", &bos));
  TL_TRY(read_id("tokenizer.ggml.eos_token_id", &eos));
  TL_TRY(read_id("tokenizer.ggml.eot_token_id", &eot));
  TL_TRY(read_id("tokenizer.ggml.unknown_token_id", &unknown));
  const auto read_flag = [&](std::string_view key, std::optional<bool>* out) -> Status {
    if (!file.has(key)) return {};
    TL_TRY_ASSIGN(*out, file.get<bool>(key));
    return {};
  };
  TL_TRY(read_flag("tokenizer.ggml.add_bos_token", &add_bos));
  return read_flag("tokenizer.ggml.add_eos_token", &add_eos);
}

void Vocabulary::find_ends() {
  // A token of ordinary text that happens to look like one ends nothing.
  const auto special = [&](std::string_view text) -> std::optional<std::int32_t> {
    const std::int32_t token = find(text);
    if (token == kNoToken || type(token) == TokenType::normal) return std::nullopt;
    return token;
  };
  for (std::string_view text : kTurnEnds) {
    if (const auto token = special(text)) {
      if (!eot) eot = token;
      ends.push_back(*token);
    }
  }
  for (std::string_view text : kTextEnds)
    if (const auto token = special(text)) ends.push_back(*token);
  if (eos) ends.push_back(*eos);
  if (eot) ends.push_back(*eot);
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  // Some converters mark them user-defined, which would show them in the text.
  for (std::int32_t token : ends) types_[static_cast<std::size_t>(token)] = TokenType::control;
}

}  // namespace thermocline
