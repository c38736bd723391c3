#include "tools/thermocline/interval.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace thermocline {

Interval bootstrap_of_mean(std::span<const double> values) {
  if (values.empty()) return {};
  constexpr std::size_t kResamplings = 2000;
  std::mt19937_64 random(1);
  std::vector<double> means(kResamplings);
  for (double& mean : means) {
    // Not a distribution of the standard library, each of which draws differently.
    for (std::size_t i = 0; i < values.size(); ++i) mean += values[random() % values.size()];
    mean /= static_cast<double>(values.size());
  }
  std::sort(means.begin(), means.end());
  constexpr std::size_t kOutside = kResamplings / 40;  // 2.5 % at each end
  return {means[kOutside], means[kResamplings - 1 - kOutside]};
}

Interval wilson(std::size_t hits, std::size_t count) {
  if (count == 0) return {0, 1};
  constexpr double kZ = 1.959963984540054;
  const double n = static_cast<double>(count), share = static_cast<double>(hits) / n;
  const double scale = 1 / (1 + kZ * kZ / n), middle = (share + kZ * kZ / (2 * n)) * scale;
  const double half = kZ * scale * std::sqrt(share * (1 - share) / n + kZ * kZ / (4 * n * n));
  return {hits == 0 ? 0.0 : middle - half, hits == count ? 1.0 : middle + half};
}

}  // namespace thermocline
