// Some of a row's channels, f16, one after the other; the others are zero. Which those are is a
// head's, in all rows of the segment: ThinK (arXiv 2407.21018).
//
// A fit's common part says what the choice was made by, and nobody reads a row with it: f32
// [heads][dim], the mean square of a channel of the queries, finite and not negative. Its own
// bytes: u16 [heads][channels kept], which they are, ascending.
#pragma once

#include "kernels/base/half.h"
#include "kernels/base/head_size.h"
#include "kernels/format/fit.h"
#include "kernels/format/row.h"

namespace thermocline {
namespace {

// A fit's own bytes, of so many channels that are kept of each row.
struct ChannelsKept {
  static constexpr std::uint64_t own_bytes(std::uint32_t heads, std::uint32_t kept) {
    return std::uint64_t{heads} * kept * sizeof(std::uint16_t);
  }
  static const std::uint16_t* of(const SideFit& fit, std::uint32_t kept) {
    return reinterpret_cast<const std::uint16_t*>(fit.own) + std::size_t{fit.head} * kept;
  }
};

template <int kEighths>
struct RowPruned {
  static_assert(kEighths == 5 || kEighths == 6);
  static constexpr RowFormat kFormat = kEighths == 5 ? RowFormat::pruned5 : RowFormat::pruned6;
  static constexpr bool kRotated = false;
  static constexpr bool kFitted = true;

  static constexpr std::uint32_t kept(std::uint32_t dim) { return dim * kEighths / 8; }
  static constexpr std::uint32_t bytes(std::uint32_t dim) { return kept(dim) * sizeof(f16); }

  static void read(const SideFit& fit, std::uint32_t, const std::byte* row, std::uint32_t dim,
                   float* out) {
    const auto* value = reinterpret_cast<const f16*>(row);
    const std::uint16_t* channel = ChannelsKept::of(fit, kept(dim));
    for (std::uint32_t i = 0; i < dim; ++i) out[i] = 0.0f;
    for (std::uint32_t i = 0; i < kept(dim); ++i) out[channel[i]] = to_float(value[i]);
  }

  template <typename V>
  static void rebuild(const SideFit& fit, const std::byte* const* rows, const std::uint32_t*,
                      int count, std::uint32_t dim, float* out) {
    alignas(64) float value[kMaxHeadSize];
    const std::uint16_t* channel = ChannelsKept::of(fit, kept(dim));
    const std::uint32_t all = kept(dim);
    for (int r = 0; r < count; ++r, out += dim) {
      const auto* from = reinterpret_cast<const f16*>(rows[r]);
      // The last ones once more with those before them: nothing behind the row is read.
      for (std::uint32_t i = 0; i + V::lanes <= all; i += V::lanes)
        V::store(value + i, V::load(from + i));
      if (all >= V::lanes)
        V::store(value + all - V::lanes, V::load(from + all - V::lanes));
      else
        for (std::uint32_t i = 0; i < all; ++i) value[i] = to_float(from[i]);
      for (std::uint32_t i = 0; i < dim; i += V::lanes) V::store(out + i, V::zero());
      for (std::uint32_t i = 0; i < all; ++i) out[channel[i]] = value[i];
    }
  }
};
using RowPruned5 = RowPruned<5>;
using RowPruned6 = RowPruned<6>;

}  // namespace
}  // namespace thermocline
