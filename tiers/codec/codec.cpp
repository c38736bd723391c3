#include "tiers/codec/codec.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace thermocline {
namespace {

constexpr float kMostF16 = 65504.0f;

// Channels of a raw side.
std::uint32_t channels(std::uint32_t bytes) { return bytes / sizeof(f16); }

}  // namespace

void Codec::decode(const std::byte* row, std::uint32_t dim, f16* out) const {
  std::vector<float> channel(dim);
  read_row(format(), row, dim, channel.data());
  // A code of the largest f16s may stand for somewhat more than any f16: that is no infinity.
  std::transform(channel.begin(), channel.end(), out, [](float x) {
    return to_f16(std::isfinite(x) ? std::clamp(x, -kMostF16, kMostF16) : x);
  });
}

RowLayout RowCodec::layout(std::uint32_t key_dim, std::uint32_t value_dim) const {
  return {keys->format(), values->format(), row_bytes(keys->format(), key_dim),
          row_bytes(values->format(), value_dim)};
}

void RowCodec::encode(const RawRows& rows, std::uint32_t head, std::span<const std::uint32_t> order,
                      std::byte* out) const {
  const std::uint32_t key_dim = channels(rows.layout.key_bytes);
  const std::uint32_t value_dim = channels(rows.layout.value_bytes);
  const RowLayout coded = layout(key_dim, value_dim);
  for (std::uint32_t r = 0; r < rows.rows; ++r, out += coded.bytes()) {
    const std::uint32_t from = order.empty() ? r : order[r];
    keys->encode(rows.key(head, from), key_dim, out);
    values->encode(rows.value(head, from), value_dim, out + coded.key_bytes);
  }
}

void RowCodec::decode(const std::byte* key, const std::byte* value, const RowLayout& raw,
                      std::byte* out) const {
  keys->decode(key, channels(raw.key_bytes), reinterpret_cast<f16*>(out));
  values->decode(value, channels(raw.value_bytes), reinterpret_cast<f16*>(out + raw.key_bytes));
}

}  // namespace thermocline
