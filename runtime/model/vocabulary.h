// The tokens of a model file: their spelling, kind and score, and which have a part to play.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline {

class GgufFile;

inline constexpr std::int32_t kNoToken = -1;
// No known vocabulary comes near: 162 bytes in SmolLM2, 1,024 in GPT-NeoX.
inline constexpr std::size_t kMaxTokenBytes = 64 << 10;
inline constexpr std::size_t kMaxSpecialBytes = 1 << 10;

enum class TokenType : std::uint8_t {
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,
  unused = 5,
  byte = 6,
};

// Immutable once read; owns its text.
class Vocabulary {
 public:
  // corrupt: arrays of different lengths, two tokens of one spelling, ids out of range.
  static Result<Vocabulary> read(const GgufFile& file);

  std::size_t size() const { return types_.size(); }
  std::string_view name(std::int32_t token) const {
    const auto i = static_cast<std::size_t>(token);
    return std::string_view(text_).substr(starts_[i], starts_[i + 1] - starts_[i]);
  }
  TokenType type(std::int32_t token) const { return types_[static_cast<std::size_t>(token)]; }
  float score(std::int32_t token) const {
    return scores_.empty() ? 0.0f : scores_[static_cast<std::size_t>(token)];
  }
  bool has_scores() const { return !scores_.empty(); }
  std::size_t longest() const { return longest_; }  // bytes of the longest spelling

  // kNoToken if there is none.
  std::int32_t find(std::string_view name) const;
  // Neither control nor unknown: what ordinary text may become.
  bool ordinary(std::int32_t token) const {
    return type(token) != TokenType::control && type(token) != TokenType::unknown;
  }

  std::optional<std::int32_t> bos, eos, eot, unknown;
  std::optional<bool> add_bos, add_eos;       // what the file says, if it does
  std::vector<std::int32_t> ends;             // ascending
  std::array<std::int32_t, 256> byte_tokens;  // "<0x00>" ... "<0xFF>", kNoToken where there is none

 private:
  Status read_tokens(const GgufFile& file);
  Status read_types(const GgufFile& file);
  Status read_bytes(const GgufFile& file);
  Status read_roles(const GgufFile& file);
  void find_ends();

  std::string text_;                   // all spellings, one after another
  std::vector<std::uint32_t> starts_;  // into text_, size() + 1
  std::vector<TokenType> types_;
  std::vector<float> scores_;
  std::vector<std::int32_t> slots_;  // open addressing, a power of two, at most half full
  std::size_t longest_ = 0;
};

}  // namespace thermocline
