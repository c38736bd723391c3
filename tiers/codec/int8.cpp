#include "tiers/codec/int8.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace thermocline {
namespace {

constexpr std::uint16_t kInfinity = 0x7c00, kNan = 0x7e00;

// The least f16 that is no smaller than magnitude / 127.
f16 scale_for(f16 magnitude) {
  const float exact = to_float(magnitude) / 127.0f;
  f16 scale = to_f16(exact);
  if (to_float(scale) < exact) ++scale.bits;  // finite and positive: the next one up
  return scale;
}

}  // namespace

void Int8Codec::encode(const f16* row, std::uint32_t dim, std::byte* out) const {
  f16 largest;  // magnitudes are ordered as their bits are, infinity and NaN above all
  for (std::uint32_t i = 0; i < dim; ++i)
    largest.bits = std::max<std::uint16_t>(largest.bits, row[i].bits & 0x7fffu);
  const bool finite = largest.bits < kInfinity;
  const f16 scale = finite ? scale_for(largest) : f16{kNan};
  if (finite && largest.bits > 0) {
    auto* codes = reinterpret_cast<std::int8_t*>(out);
    const float divisor = to_float(scale);
    for (std::uint32_t i = 0; i < dim; ++i)
      codes[i] = static_cast<std::int8_t>(std::nearbyint(to_float(row[i]) / divisor));
  } else {
    std::memset(out, 0, dim);
  }
  std::memcpy(out + dim, &scale, sizeof scale);
  std::memset(out + dim + sizeof scale, 0, row_bytes(format(), dim) - dim - sizeof scale);
}

}  // namespace thermocline
