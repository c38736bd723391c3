#include "tiers/codec/int8.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tiers/codec/f16_limits.h"

namespace thermocline {

void Int8Codec::encode(const f16* row, std::uint32_t dim, std::byte* out) const {
  f16 largest;  // magnitudes are ordered as their bits are, infinity and NaN above all
  for (std::uint32_t i = 0; i < dim; ++i)
    largest.bits = std::max<std::uint16_t>(largest.bits, row[i].bits & 0x7fffu);
  const bool finite = is_finite(largest);
  const f16 scale = finite ? f16_at_least(to_float(largest) / 127.0f) : kNanF16;
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
