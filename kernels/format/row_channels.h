// Unsigned codes of 2 or 4 bits, one after the other from the low bits up, each of which stands for
// least + code * scale. Every channel has a least and a scale of its own, in each group of 32 rows
// that are stored one after the other: KIVI's keys (arXiv 2402.02750), whose outliers are channels.
//
// A fit's own bytes: [head][group] of scales [dim], then leasts [dim], f16. The products are exact
// as floats, so a channel is rounded once.
#pragma once

#include "kernels/base/half.h"
#include "kernels/format/fit.h"
#include "kernels/format/row.h"

namespace thermocline {
namespace {

template <int kBits>
struct RowChannels {
  static constexpr RowFormat kFormat = kBits == 2 ? RowFormat::channels2 : RowFormat::channels4;
  static constexpr bool kRotated = false;
  static constexpr bool kFitted = true;
  static constexpr std::uint32_t kGroup = 32;  // rows
  static constexpr int kLevels = 1 << kBits;

  static constexpr std::uint32_t bytes(std::uint32_t dim) { return dim * kBits / 8; }
  static constexpr std::uint32_t groups(std::uint32_t rows) { return (rows + kGroup - 1) / kGroup; }
  static constexpr std::uint64_t own_bytes(std::uint32_t heads, std::uint32_t rows,
                                           std::uint32_t dim) {
    return std::uint64_t{heads} * groups(rows) * 2 * dim * sizeof(f16);
  }
  // Scales of the group of a head's row, which its leasts follow.
  static std::size_t scales_at(const SideFit& fit, std::uint32_t number, std::uint32_t dim) {
    return (std::size_t{fit.head} * groups(fit.rows) + number / kGroup) * 2 * dim;
  }

  static void read(const SideFit& fit, std::uint32_t number, const std::byte* row,
                   std::uint32_t dim, float* out) {
    const auto* codes = reinterpret_cast<const std::uint8_t*>(row);
    const f16* scale = reinterpret_cast<const f16*>(fit.own) + scales_at(fit, number, dim);
    for (std::uint32_t i = 0; i < dim; ++i) {
      const int code = codes[i * kBits / 8] >> i * kBits % 8 & (kLevels - 1);
      out[i] = static_cast<float>(code) * to_float(scale[i]) + to_float(scale[dim + i]);
    }
  }

  template <typename V>
  static void rebuild(const SideFit& fit, const std::byte* const* rows,
                      const std::uint32_t* numbers, int count, std::uint32_t dim, float* out) {
    for (int r = 0; r < count; ++r, out += dim) {
      const auto* codes = reinterpret_cast<const std::uint8_t*>(rows[r]);
      const f16* scale = reinterpret_cast<const f16*>(fit.own) + scales_at(fit, numbers[r], dim);
      for (std::uint32_t i = 0; i < dim; i += V::lanes)
        V::store(out + i, V::fma(V::template codes<kBits>(codes + i * kBits / 8, i),
                                 V::load(scale + i), V::load(scale + dim + i)));
    }
  }
};
using RowChannels2 = RowChannels<2>;
using RowChannels4 = RowChannels<4>;

}  // namespace
}  // namespace thermocline
