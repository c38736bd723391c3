// How far two texts agree.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

namespace thermocline {

// Tokens from the first on that both begin with.
inline std::uint32_t common_tokens(std::span<const int> one, std::span<const int> other) {
  return static_cast<std::uint32_t>(std::ranges::mismatch(one, other).in1 - one.begin());
}

}  // namespace thermocline
