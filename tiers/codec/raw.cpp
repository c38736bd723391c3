#include "tiers/codec/raw.h"

#include <cstring>

namespace thermocline {

void RawCodec::encode(const f16* row, std::uint32_t dim, std::byte* out) const {
  std::memcpy(out, row, dim * sizeof(f16));
}

RowLayout raw_layout(std::uint32_t key_dim, std::uint32_t value_dim) {
  return {RowFormat::f16, RowFormat::f16, row_bytes(RowFormat::f16, key_dim),
          row_bytes(RowFormat::f16, value_dim)};
}

}  // namespace thermocline
