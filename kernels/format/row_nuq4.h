// Codes of 4 bits, each of which stands for one of 16 levels between -1 and 1, times a scale, plus
// a middle. Levels are of all rows of the segment; scale and middle of one channel in all rows, or
// of one row in all channels. A few channels of rows, the outliers, are kept beside that as they
// were. Keys are so before their rotary embedding, and are then rotated to their position: KVQuant
// (arXiv 2401.18079).
//
// Codes lie as those of llama.cpp's groups do: for 32 channels, 16 bytes, whose low halves are the
// first 16 channels. A fit's own bytes:
//   u32 by                0: a scale and a middle a channel; 1: a row
//   u32 outliers          of all heads
//   f32 [16]              levels, ascending
//   f16 [heads][2][dim]   scales, then middles; by row [heads][rows][2]
//   u32 [heads * groups + 1]  where the outliers of each group of 32 rows begin, in order of heads;
//                         the first 0, the last `outliers`
//   f16 [outliers]        what they are, before rotation
//   u16 [outliers]        2048 times the row's number in its group, plus the channel; ascending
// The last group of a head may be shorter. Products are rounded once.
#pragma once

#include <cmath>

#include "kernels/base/half.h"
#include "kernels/base/head_size.h"
#include "kernels/format/fit.h"
#include "kernels/format/row.h"
#include "kernels/format/turned_row.h"

namespace thermocline {
namespace {

struct RowNuq4 {
  static constexpr RowFormat kFormat = RowFormat::nuq4;
  static constexpr bool kRotated = false;
  static constexpr bool kFitted = true;
  static constexpr std::uint32_t kByChannel = 0, kByRow = 1;
  static constexpr std::uint32_t kLevels = 16;
  static constexpr std::uint32_t kGroup = 32;        // rows that outliers are listed by
  static constexpr std::uint32_t kRowPlaces = 2048;  // of an outlier in one row
  static_assert(kMaxHeadSize <= kRowPlaces && kGroup * kRowPlaces == 1u << 16);

  struct Header {
    std::uint32_t by = kByChannel, outliers = 0;
    float level[kLevels] = {};
  };

  static constexpr std::uint32_t bytes(std::uint32_t dim) {
    return (dim + kRowGroup - 1) / kRowGroup * kRowGroup / 2;
  }
  static constexpr std::uint64_t groups(std::uint64_t rows) { return (rows + kGroup - 1) / kGroup; }
  // Scales and middles together.
  static constexpr std::uint64_t ranges(std::uint32_t by, std::uint32_t heads, std::uint64_t rows,
                                        std::uint32_t dim) {
    return 2 * heads * (by == kByChannel ? dim : rows);
  }
  static constexpr std::uint64_t own_bytes(std::uint32_t by, std::uint32_t heads,
                                           std::uint64_t rows, std::uint32_t dim,
                                           std::uint64_t outliers) {
    return sizeof(Header) + ranges(by, heads, rows, dim) * sizeof(f16) +
           (heads * groups(rows) + 1) * sizeof(std::uint32_t) + outliers * 2 * sizeof(f16);
  }

  static const Header& header(const SideFit& fit) {
    return *reinterpret_cast<const Header*>(fit.own);
  }
  static const f16* first_range(const SideFit& fit) {
    return reinterpret_cast<const f16*>(fit.own + sizeof(Header));
  }
  static const f16* channel_scales(const SideFit& fit, std::uint32_t dim) {
    return first_range(fit) + std::size_t{fit.head} * 2 * dim;
  }
  static const f16* row_scale(const SideFit& fit, std::uint32_t number) {
    return first_range(fit) + (std::size_t{fit.head} * fit.rows + number) * 2;
  }
  static const std::uint32_t* group_starts(const SideFit& fit, std::uint32_t dim) {
    return reinterpret_cast<const std::uint32_t*>(first_range(fit) +
                                                  ranges(header(fit).by, fit.heads, fit.rows, dim));
  }

  // The outliers of a head's rows. Rows are mostly read in the order in which they are stored, so
  // that what is looked for comes next.
  class Outliers {
   public:
    Outliers(const SideFit& fit, std::uint32_t dim) {
      const std::uint32_t* starts = group_starts(fit, dim);
      starts_ = starts + fit.head * groups(fit.rows);
      values_ = reinterpret_cast<const f16*>(starts + fit.heads * groups(fit.rows) + 1);
      places_ = reinterpret_cast<const std::uint16_t*>(values_ + header(fit).outliers);
    }
    // Where a row has some, they replace what its codes stand for.
    void put(std::uint32_t number, float* out) {
      if (number < next_ || number / kGroup != group_) {
        group_ = number / kGroup;
        at_ = starts_[group_];
        end_ = starts_[group_ + 1];
      }
      next_ = number + 1;
      const std::uint32_t first = number % kGroup * kRowPlaces;
      while (at_ != end_ && places_[at_] < first) ++at_;
      for (; at_ != end_ && places_[at_] < first + kRowPlaces; ++at_)
        out[places_[at_] % kRowPlaces] = to_float(values_[at_]);
    }

   private:
    const std::uint32_t* starts_;
    const f16* values_;
    const std::uint16_t* places_;
    std::uint32_t group_ = ~0u, next_ = 0;  // of the row met last, and what comes after it
    std::uint32_t at_ = 0, end_ = 0;
  };

  static void read(const SideFit& fit, std::uint32_t number, const std::byte* row,
                   std::uint32_t dim, float* out) {
    const auto* codes = reinterpret_cast<const std::uint8_t*>(row);
    const bool by_row = header(fit).by == kByRow;
    const f16* scale = by_row ? row_scale(fit, number) : channel_scales(fit, dim);
    const f16* middle = scale + (by_row ? 1 : dim);
    for (std::uint32_t i = 0; i < dim; ++i) {
      const float level = header(fit).level[codes[i / 32 * 16 + i % 16] >> i % 32 / 16 * 4 & 15];
      const std::uint32_t at = by_row ? 0 : i;
      out[i] = std::fma(level, to_float(scale[at]), to_float(middle[at]));
    }
    Outliers(fit, dim).put(number, out);
    turn_row(fit, number, out);
  }

  template <typename V>
  static void rebuild(const SideFit& fit, const std::byte* const* rows,
                      const std::uint32_t* numbers, int count, std::uint32_t dim, float* out) {
    const bool by_row = header(fit).by == kByRow;
    const float* level = header(fit).level;
    Outliers outliers(fit, dim);
    for (int r = 0; r < count; ++r, out += dim) {
      const auto* codes = reinterpret_cast<const std::uint8_t*>(rows[r]);
      if (by_row) {
        const f16* scale = row_scale(fit, numbers[r]);
        const typename V::F by = V::set(scale[0]), middle = V::set(scale[1]);
        for (std::uint32_t i = 0; i < dim; i += V::lanes)
          V::store(out + i, V::look_up(level, by, middle, codes + i / 32 * 16, i % 32));
      } else {
        const f16* scale = channel_scales(fit, dim);
        const typename V::F one = V::set(1.0f);
        for (std::uint32_t i = 0; i < dim; i += V::lanes)
          V::store(out + i, V::fma(V::look_up(level, one, V::zero(), codes + i / 32 * 16, i % 32),
                                   V::load(scale + i), V::load(scale + dim + i)));
      }
      outliers.put(numbers[r], out);
      turn_row(fit, numbers[r], out);
    }
  }
};

}  // namespace
}  // namespace thermocline
