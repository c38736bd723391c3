#include <cstring>

#include "tiers/codec/codec.h"

namespace thermocline {

RowLayout RawCodec::layout(std::uint32_t key_dim, std::uint32_t value_dim) const {
  return {RowFormat::f16, RowFormat::f16, key_dim * 2, value_dim * 2};
}

void RawCodec::encode(const RawRows& rows, std::uint32_t head, std::span<const std::uint32_t> order,
                      std::byte* out) const {
  const std::size_t bytes = rows.layout.bytes();
  if (order.empty()) {
    std::memcpy(out, rows.row(head, 0), bytes * rows.rows);
    return;
  }
  for (std::uint32_t r = 0; r < rows.rows; ++r)
    std::memcpy(out + r * bytes, rows.row(head, order[r]), bytes);
}

}  // namespace thermocline
