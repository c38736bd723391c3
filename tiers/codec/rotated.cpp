#include "tiers/codec/rotated.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/head_size.h"
#include "kernels/format/row_rotated.h"
#include "kernels/hadamard.h"
#include "tiers/codec/f16_limits.h"
#include "tiers/codec/plain_row.h"
#include "tiers/codec/scaled_codes.h"

namespace thermocline {
namespace {

template <typename Format>
void encode_rotated(const f16* row, std::uint32_t dim, std::byte* out) {
  float x[kMaxHeadSize], weight[kMaxHeadSize];
  plain_row(row, dim, nullptr, 0, x);
  hadamard(x, dim);
  std::fill_n(weight, dim, 1.0f);
  float most = 0;
  for (std::uint32_t i = 0; i < dim; ++i) most = std::max(most, std::abs(x[i]));

  ScaledCodes coded;
  if (!all_finite(x, dim)) {
    coded.scale = kNanF16;
  } else if (most > 0) {
    coded = ScaledCodes::of(
        {x, dim}, {weight, dim}, most / Format::kMiddle, [](std::size_t, float at, float* level) {
          const float code =
              std::clamp(std::nearbyint(at + Format::kMiddle), 0.0f, 2 * Format::kMiddle);
          *level = code - Format::kMiddle;
          return static_cast<std::uint8_t>(code);
        });
  }
  std::memset(out, 0, Format::bytes(dim));
  auto* codes = reinterpret_cast<std::uint8_t*>(out);
  for (std::uint32_t i = 0; i < dim; ++i) Format::put(codes, dim, i, coded.code[i]);
  std::memcpy(out + Format::codes_bytes(dim), &coded.scale, sizeof coded.scale);
}

}  // namespace

std::string_view RotatedCodec::name() const {
  return bits_ == Bits::two ? "rotated2" : bits_ == Bits::three ? "rotated3" : "rotated4";
}

RowFormat RotatedCodec::format() const {
  return bits_ == Bits::two     ? RowFormat::rotated2
         : bits_ == Bits::three ? RowFormat::rotated3
                                : RowFormat::rotated4;
}

void RotatedCodec::encode(const f16* row, std::uint32_t dim, std::byte* out) const {
  switch (bits_) {
    case Bits::two:
      return encode_rotated<RowRotated2>(row, dim, out);
    case Bits::three:
      return encode_rotated<RowRotated3>(row, dim, out);
    case Bits::four:
      return encode_rotated<RowRotated4>(row, dim, out);
  }
}

}  // namespace thermocline
