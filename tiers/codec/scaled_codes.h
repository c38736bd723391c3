// Codes of a row's channels for levels that are multiplied by one scale, and that scale.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "kernels/base/half.h"
#include "kernels/base/head_size.h"
#include "tiers/codec/f16_limits.h"

namespace thermocline {

struct ScaledCodes {
  static constexpr int kTried = 8;  // scales at most, each half of an octave below the one before
  static constexpr int kWorse = 2;  // in a row, after which no lower one is tried

  f16 scale;
  std::uint8_t code[kMaxHeadSize] = {};

  // Of finite channels. `nearest(i, x)` gives the code of channel i whose level is nearest to x,
  // and sets the level. Of the scales that are tried, the first `widest`, above zero, the one is
  // taken under which the errors have the least sum of squares, each by its weight; after it was
  // moved to where they have the least for these codes. So they have no more than under `widest`.
  template <typename Nearest>
  static ScaledCodes of(std::span<const float> x, std::span<const float> weight, float widest,
                        const Nearest& nearest) {
    ScaledCodes best, tried;
    double least = std::numeric_limits<double>::infinity(), squares = 0;
    for (std::size_t i = 0; i < x.size(); ++i)
      squares += double{weight[i]} * double{x[i]} * double{x[i]};
    for (int step = 0, worse = 0; step < kTried && worse < kWorse; ++step) {
      const float by = widest * std::exp2(-0.5f * static_cast<float>(step));
      double with_x = 0, with_itself = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        float level = 0;
        tried.code[i] = nearest(i, x[i] / by, &level);
        const double weighted = double{weight[i]} * double{level};
        with_x += weighted * double{x[i]};
        with_itself += weighted * double{level};
      }
      ++worse;
      if (!(with_itself > 0)) continue;
      tried.scale =
          to_f16(static_cast<float>(std::clamp(with_x / with_itself, 0.0, double{kMostF16})));
      const double scale = double{to_float(tried.scale)};
      const double missed = squares - 2 * scale * with_x + scale * scale * with_itself;
      if (missed >= least) continue;
      least = missed;
      best = tried;
      worse = 0;
    }
    return best;
  }
};

}  // namespace thermocline
