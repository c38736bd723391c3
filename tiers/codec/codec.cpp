#include "tiers/codec/codec.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/head_size.h"
#include "tiers/codec/f16_limits.h"

namespace thermocline {

void Codec::read(const std::byte* row, std::uint32_t dim, const SideFit& fit, std::uint32_t number,
                 f16* out) const {
  TL_CHECK(dim <= kMaxHeadSize);
  float channel[kMaxHeadSize];
  read_row(format(), row, dim, channel, fit, number);
  // A code of the largest f16s may stand for somewhat more than any f16: that is no infinity.
  std::transform(channel, channel + dim, out, [](float x) {
    return to_f16(std::isfinite(x) ? std::clamp(x, -kMostF16, kMostF16) : x);
  });
}

RowLayout RowCodec::layout(std::uint32_t key_dim, std::uint32_t value_dim) const {
  return {keys->format(), values->format(), row_bytes(keys->format(), key_dim),
          row_bytes(values->format(), value_dim)};
}

void RowCodec::encode(const RawRows& rows, std::uint32_t head, std::span<const std::uint32_t> order,
                      const Segment& segment, std::uint32_t first, std::byte* out) const {
  const std::uint32_t key_dim = rows.channels(Side::keys);
  const std::uint32_t value_dim = rows.channels(Side::values);
  const RowLayout coded = layout(key_dim, value_dim);
  const SideFit key_fit = segment.fit_of(Side::keys, head);
  const SideFit value_fit = segment.fit_of(Side::values, head);
  for (std::uint32_t r = 0; r < rows.rows; ++r, out += coded.bytes()) {
    const std::uint32_t from = order.empty() ? r : order[r];
    keys->write(rows.key(head, from), key_dim, key_fit, first + r, out);
    values->write(rows.value(head, from), value_dim, value_fit, first + r, out + coded.key_bytes);
  }
}

void RowCodec::decode(const std::byte* key, const std::byte* value, const Segment& segment,
                      std::uint32_t head, std::uint32_t number, const RowLayout& raw,
                      std::byte* out) const {
  const auto key_dim = static_cast<std::uint32_t>(raw.key_bytes / sizeof(f16));
  const auto value_dim = static_cast<std::uint32_t>(raw.value_bytes / sizeof(f16));
  keys->read(key, key_dim, segment.fit_of(Side::keys, head), number, reinterpret_cast<f16*>(out));
  values->read(value, value_dim, segment.fit_of(Side::values, head), number,
               reinterpret_cast<f16*>(out + raw.key_bytes));
}

}  // namespace thermocline
