// Where the f16s end: what a codec may write, and what tells it that a row hides something.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/base/half.h"

namespace thermocline {

inline constexpr float kMostF16 = 65504.0f;
inline constexpr f16 kNanF16{0x7e00};

inline bool is_finite(f16 x) { return (x.bits & 0x7fffu) < 0x7c00u; }
inline bool is_finite(float x) { return std::isfinite(x); }
// Of a row's channels, f16 or float.
template <typename Channel>
bool all_finite(const Channel* row, std::uint32_t dim) {
  return std::all_of(row, row + dim, [](Channel x) { return is_finite(x); });
}

// The least that is no smaller than x, from 0 to kMostF16.
inline f16 f16_at_least(float x) {
  f16 least = to_f16(x);
  if (to_float(least) < x) ++least.bits;  // finite and positive: the next one up
  return least;
}

}  // namespace thermocline
