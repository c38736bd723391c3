#include "tiers/codec/plain_row.h"

#include <algorithm>
#include <cmath>

#include "tiers/codec/f16_limits.h"

namespace thermocline {

void plain_row(const f16* row, std::uint32_t dim, const Rotation* rotation, std::uint32_t position,
               float* out) {
  for (std::uint32_t i = 0; i < dim; ++i) out[i] = to_float(row[i]);
  if (!rotation) return;
  rotate_back(*rotation, position, out);
  clamp_to_f16(dim, out);
}

void clamp_to_f16(std::uint32_t dim, float* x) {
  for (std::uint32_t i = 0; i < dim; ++i)
    if (std::isfinite(x[i])) x[i] = std::clamp(x[i], -kMostF16, kMostF16);
}

}  // namespace thermocline
