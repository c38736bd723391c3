// Unsigned codes of 2, 3 or 4 bits of the row's channels after a Hadamard rotation, one after the
// other from the low bits up, where of three bits the lower two come first and then the third of
// all channels; then one f16 scale. A code c stands for (c - middle) * scale, middle half of the
// largest code; the products are exact as floats.
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
  static constexpr RowFormat kFormat = kBits == 2   ? RowFormat::rotated2
                                       : kBits == 3 ? RowFormat::rotated3
                                                    : RowFormat::rotated4;
  static constexpr bool kRotated = true;
  static constexpr int kLevels = 1 << kBits;
  static constexpr float kMiddle = static_cast<float>(kLevels - 1) / 2;
  static constexpr int kLow = kBits == 3 ? 2 : kBits;  // bits that lie together
  static constexpr std::uint32_t codes_bytes(std::uint32_t dim) { return dim * kBits / 8; }
  static constexpr std::uint32_t bytes(std::uint32_t dim) { return codes_bytes(dim) + sizeof(f16); }
  static const std::uint8_t* codes(const std::byte* row) {
    return reinterpret_cast<const std::uint8_t*>(row);
  }
  static const std::uint8_t* third_bits(const std::byte* row, std::uint32_t dim) {
    return codes(row) + dim * kLow / 8;
  }
  static f16 scale(const std::byte* row, std::uint32_t dim) {
    return *reinterpret_cast<const f16*>(row + codes_bytes(dim));
  }
  static float value(const std::byte* row, std::uint32_t dim, std::uint32_t i) {
    int code = codes(row)[i * kLow / 8] >> i * kLow % 8 & ((1 << kLow) - 1);
    if constexpr (kBits == 3) code += (third_bits(row, dim)[i / 8] >> i % 8 & 1) << kLow;
    return (static_cast<float>(code) - kMiddle) * to_float(scale(row, dim));
  }

  // Into codes that are zero so far.
  static void put(std::uint8_t* codes, std::uint32_t dim, std::uint32_t i, std::uint8_t code) {
    codes[i * kLow / 8] |= static_cast<std::uint8_t>((code & ((1 << kLow) - 1)) << i * kLow % 8);
    if constexpr (kBits == 3)
      codes[dim * kLow / 8 + i / 8] |= static_cast<std::uint8_t>(code >> kLow << i % 8);
  }

  template <typename V>
  struct Reader {
    Reader(const std::byte* row, std::uint32_t dim)
        : channels(codes(row)),
          thirds(third_bits(row, dim)),
          channel_count(dim),
          levels(V::template levels<kLow>(scale(row, dim))),
          step(to_float(scale(row, dim))) {}
    typename V::F load(std::uint32_t group, std::uint32_t at) const {
      const std::uint32_t i = group + at;
      const auto low = V::template at_codes<kLow>(levels, channels + i * kLow / 8, i);
      if constexpr (kBits == 3)
        return V::add_bits(V::sub(low, V::set(2 * step)), 4 * step, thirds, i, channel_count);
      else
        return low;
    }

    const std::uint8_t* channels;
    const std::uint8_t* thirds;
    std::uint32_t channel_count;
    typename V::F levels;
    float step;
  };
};
using RowRotated2 = RowRotated<2>;
using RowRotated3 = RowRotated<3>;
using RowRotated4 = RowRotated<4>;

}  // namespace
}  // namespace thermocline
