// NearestOps over a Vec: a tile of rows against a panel of centres, whose products never leave the
// registers: only each lane's best centre so far is kept.
#pragma once

#include <limits>

#include "kernels/cpu/vec.h"
#include "kernels/nearest.h"

namespace thermocline {
namespace {

template <typename V>
struct Nearest {
  using F = typename V::F;
  static constexpr int L = V::lanes;
  static constexpr int kWide = kCentrePanel / L;
  static constexpr int kRows = kWide == 1 ? 12 : kWide == 2 ? 6 : 1;  // fills the register file

  template <int rows>
  static void tile(const float* row, std::size_t dim, const float* panels, std::size_t centres,
                   std::uint32_t* nearest) {
    alignas(64) float best[rows][kCentrePanel], which[rows][kCentrePanel];
    for (int r = 0; r < rows; ++r)
      for (std::size_t i = 0; i < kCentrePanel; ++i) {
        best[r][i] = -std::numeric_limits<float>::infinity();
        which[r][i] = 0.0f;
      }
    alignas(64) float lane[kCentrePanel];
    for (std::size_t i = 0; i < kCentrePanel; ++i) lane[i] = static_cast<float>(i);

    for (std::size_t first = 0; first < centres;
         first += kCentrePanel, panels += dim * kCentrePanel) {
      F dot[rows][kWide];
      for (int r = 0; r < rows; ++r)
        for (int w = 0; w < kWide; ++w) dot[r][w] = V::zero();
      for (std::size_t d = 0; d < dim; ++d) {
        F centre[kWide];
        for (int w = 0; w < kWide; ++w) centre[w] = V::load(panels + d * kCentrePanel + w * L);
        for (int r = 0; r < rows; ++r) {
          const F x = V::set(row[r * dim + d]);
          for (int w = 0; w < kWide; ++w) dot[r][w] = V::fma(x, centre[w], dot[r][w]);
        }
      }
      const F base = V::set(static_cast<float>(first));
      for (int r = 0; r < rows; ++r)
        for (int w = 0; w < kWide; ++w) {
          const F before = V::load(best[r] + w * L);
          const F worse = V::sub(before, dot[r][w]);  // negative: dot is above
          V::store(best[r] + w * L, V::where_negative(worse, dot[r][w], before));
          V::store(which[r] + w * L, V::where_negative(worse, V::add(base, V::load(lane + w * L)),
                                                       V::load(which[r] + w * L)));
        }
    }
    for (int r = 0; r < rows; ++r) {
      std::size_t at = 0;
      for (std::size_t i = 1; i < kCentrePanel; ++i)
        if (best[r][i] > best[r][at] || (best[r][i] == best[r][at] && which[r][i] < which[r][at]))
          at = i;
      // Rows that are not numbers compare as they like.
      const std::uint32_t found = static_cast<std::uint32_t>(which[r][at]);
      nearest[r] = found < centres ? found : static_cast<std::uint32_t>(centres - 1);
    }
  }

  static void nearest(const float* rows, std::size_t count, std::size_t dim, const float* panels,
                      std::size_t centres, std::uint32_t* out) {
    std::size_t r = 0;
    for (; r + kRows <= count; r += kRows)
      tile<kRows>(rows + r * dim, dim, panels, centres, out + r);
    for (; r < count; ++r) tile<1>(rows + r * dim, dim, panels, centres, out + r);
  }
};

template <typename V>
constexpr NearestOps make_nearest() {
  return {&Nearest<V>::nearest};
}

}  // namespace
}  // namespace thermocline
