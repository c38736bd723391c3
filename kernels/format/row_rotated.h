// Unsigned codes of 2 or 4 bits, one after the other from the low bits up, of the row's channels
// after a Hadamard rotation; then one f16 scale. A code c stands for (c - middle) * scale, middle
// half of the largest code; the products are exact as floats.
//
// kRotated: value() and Reader give the rotated row. Who reads rows one by one rotates them back;
// who adds many rotates their sum, once.
#pragma once

#include "kernels/base/half.h"
#include "kernels/format/row.h"

namespace thermocline {
namespace {

template <int kBits>
struct RowRotated {
  static constexpr RowFormat kFormat = kBits == 2 ? RowFormat::rotated2 : RowFormat::rotated4;
  static constexpr bool kRotated = true;
  static constexpr int kLevels = 1 << kBits;
  static constexpr float kMiddle = static_cast<float>(kLevels - 1) / 2;
  static constexpr std::uint32_t codes_bytes(std::uint32_t dim) { return dim * kBits / 8; }
  static constexpr std::uint32_t bytes(std::uint32_t dim) { return codes_bytes(dim) + sizeof(f16); }
  static const std::uint8_t* codes(const std::byte* row) {
    return reinterpret_cast<const std::uint8_t*>(row);
  }
  static f16 scale(const std::byte* row, std::uint32_t dim) {
    return *reinterpret_cast<const f16*>(row + codes_bytes(dim));
  }
  static float value(const std::byte* row, std::uint32_t dim, std::uint32_t i) {
    const int code = codes(row)[i * kBits / 8] >> i * kBits % 8 & (kLevels - 1);
    return (static_cast<float>(code) - kMiddle) * to_float(scale(row, dim));
  }

  template <typename V>
  struct Reader {
    Reader(const std::byte* row, std::uint32_t dim)
        : channels(codes(row)), levels(V::template levels<kBits>(scale(row, dim))) {}
    typename V::F load(std::uint32_t group, std::uint32_t at) const {
      const std::uint32_t i = group + at;
      return V::template at_codes<kBits>(levels, channels + i * kBits / 8, i);
    }

    const std::uint8_t* channels;
    typename V::F levels;
  };
};
using RowRotated2 = RowRotated<2>;
using RowRotated4 = RowRotated<4>;

}  // namespace
}  // namespace thermocline
