#include "tiers/codec/bf16.h"

#include <algorithm>

namespace thermocline {

void Bf16Codec::encode(const f16* row, std::uint32_t dim, std::byte* out) const {
  std::transform(row, row + dim, reinterpret_cast<bf16*>(out),
                 [](f16 x) { return to_bf16(to_float(x)); });
}

}  // namespace thermocline
