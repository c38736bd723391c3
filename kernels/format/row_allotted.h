// Codes of as many bits a channel as a fit allots to it, 0 to 8, of what a row differs from the
// mean of its segment by; then one f16 scale. Keys are so before their rotary embedding, and are
// then rotated to their position.
//
// The channels of a head are put in an order, those of most bits first, in eights of as many. Bits
// lie in planes: the highest bit of every channel that has any, then the next one of every channel
// that has two, and so on, eight channels a byte, the first lowest. A code c of w bits is at
// u = (2 c + 1) / 2^w - 1, and stands for
//
//   mean + spread * scale * u * (linear(w) + cubic(w) * u^2)
//
// which lies where the levels of the least squares of a normal distribution do, within 2 % of their
// error at each width, and takes no table. A channel without bits is its mean.
//
// A fit's own bytes, for each head:
//   u16 [8]    channels that have more than 0, 1 ... 7 bits, multiples of 8
//   u16 [dim]  which of the row's channels lies there; each once
//   f16 [dim]  spreads, in that order
//   f16 [dim]  means, in that order
// Its common part says what the bits were allotted by, and nobody reads a row with it: f32
// [heads][dim], the mean square of a channel of the queries, finite and not negative.
#pragma once

#include <cmath>

#include "kernels/base/half.h"
#include "kernels/base/head_size.h"
#include "kernels/format/fit.h"
#include "kernels/format/row.h"
#include "kernels/format/turned_row.h"

namespace thermocline {
namespace {

// What the three sizes do not differ in.
struct Allotted {
  static constexpr std::uint32_t kMostBits = 8, kUnit = 8;  // channels of as many bits

  // Of a width; none of 0 bits.
  static constexpr float kLinear[kMostBits + 1] = {0,       1.5958f, 1.7850f, 1.8862f, 1.9233f,
                                                   1.9507f, 1.9735f, 2.0005f, 2.0300f};
  static constexpr float kCubic[kMostBits + 1] = {0,       0,       0.4079f, 0.7421f, 1.0751f,
                                                  1.3767f, 1.6687f, 1.9426f, 2.2064f};

  static constexpr std::uint64_t head_bytes(std::uint32_t dim) {
    return (kMostBits + 3 * std::uint64_t{dim}) * sizeof(std::uint16_t);
  }
  static constexpr std::uint64_t own_bytes(std::uint32_t heads, std::uint32_t dim) {
    return heads * head_bytes(dim);
  }

  // A head's part.
  const std::uint16_t* longer;  // [kMostBits]
  const std::uint16_t* channel;
  const f16* spread;
  const f16* mean;

  Allotted(const SideFit& fit, std::uint32_t dim)
      : longer(reinterpret_cast<const std::uint16_t*>(fit.own + fit.head * head_bytes(dim))),
        channel(longer + kMostBits),
        spread(reinterpret_cast<const f16*>(channel + dim)),
        mean(spread + dim) {}
  // Of the channel that lies there.
  std::uint32_t width(std::uint32_t at) const {
    std::uint32_t bits = 0;
    while (bits < kMostBits && at < longer[bits]) ++bits;
    return bits;
  }
};

template <int kBits>
struct RowAllotted {
  static constexpr RowFormat kFormat = kBits == 2   ? RowFormat::allotted2
                                       : kBits == 3 ? RowFormat::allotted3
                                                    : RowFormat::allotted4;
  static constexpr bool kRotated = false;
  static constexpr bool kFitted = true;

  // With a row of row_rotated.h beside it that has as many bits, which is two bytes longer, so many
  // bits a channel of both sides.
  static constexpr std::uint32_t codes_bytes(std::uint32_t dim) { return dim * kBits / 8 - 4; }
  static constexpr std::uint32_t bytes(std::uint32_t dim) { return codes_bytes(dim) + sizeof(f16); }
  static const std::uint8_t* codes(const std::byte* row) {
    return reinterpret_cast<const std::uint8_t*>(row);
  }
  static float scale(const std::byte* row, std::uint32_t dim) {
    return to_float(*reinterpret_cast<const f16*>(row + codes_bytes(dim)));
  }

  static void read(const SideFit& fit, std::uint32_t number, const std::byte* row,
                   std::uint32_t dim, float* out) {
    const Allotted of(fit, dim);
    for (std::uint32_t i = 0; i < dim; ++i) {
      const std::uint32_t width = of.width(i);
      const std::uint8_t* plane = codes(row);
      std::uint32_t code = 0;
      for (std::uint32_t k = 0; k < width; plane += of.longer[k++] / 8)
        code = code << 1 | (plane[i / 8] >> i % 8 & 1u);
      const double u = (2.0 * code + 1) / (1u << width) - 1;
      out[of.channel[i]] = static_cast<float>(
          double{to_float(of.mean[i])} +
          double{to_float(of.spread[i])} * double{scale(row, dim)} * u *
              (double{Allotted::kLinear[width]} + double{Allotted::kCubic[width]} * u * u));
    }
    turn_row(fit, number, out);
  }

  template <typename V>
  static void rebuild(const SideFit& fit, const std::byte* const* rows,
                      const std::uint32_t* numbers, int count, std::uint32_t dim, float* out) {
    const Allotted of(fit, dim);
    // Of a channel: what its bits' sum is less than u by, and what u and its cube are multiplied
    // by.
    alignas(64) float less[kMaxHeadSize], linear[kMaxHeadSize], cubic[kMaxHeadSize];
    for (std::uint32_t width = Allotted::kMostBits, i = 0; i < dim; --width) {
      const std::uint32_t end = width > 0 ? of.longer[width - 1] : dim;
      for (; i < end; ++i) {
        const float spread = to_float(of.spread[i]);
        less[i] = 1.0f - 1.0f / static_cast<float>(1u << width);
        linear[i] = spread * Allotted::kLinear[width];
        cubic[i] = spread * Allotted::kCubic[width];
      }
    }
    alignas(64) float coded[kMaxHeadSize];
    for (int r = 0; r < count; ++r) {
      const auto by = V::set(scale(rows[r], dim));
      for (std::uint32_t i = 0; i < dim; i += V::lanes) {
        auto u = V::sub(V::zero(), V::load(less + i));
        const std::uint8_t* plane = codes(rows[r]);
        float bit = 1.0f;
        for (std::uint32_t k = 0; k < Allotted::kMostBits && i < of.longer[k];
             plane += of.longer[k++] / 8, bit /= 2)
          u = V::add_bits(u, bit, plane, i, of.longer[k]);
        const auto by_u = V::fma(V::mul(u, u), V::load(cubic + i), V::load(linear + i));
        V::store(coded + i, V::fma(V::mul(u, by), by_u, V::load(of.mean + i)));
      }
      float* row = out + static_cast<std::size_t>(r) * dim;
      for (std::uint32_t i = 0; i < dim; ++i) row[of.channel[i]] = coded[i];
    }
    // Not in the loop above: a vector that is read just after its floats were written one by one
    // has to wait for all of them.
    for (int r = 0; r < count; ++r, out += dim) turn_row(fit, numbers[r], out);
  }
};
using RowAllotted2 = RowAllotted<2>;
using RowAllotted3 = RowAllotted<3>;
using RowAllotted4 = RowAllotted<4>;

}  // namespace
}  // namespace thermocline
