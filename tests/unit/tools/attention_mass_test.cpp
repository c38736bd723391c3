#include "tools/thermocline/attention_mass.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace thermocline {
namespace {

TEST(AttentionMass, IsTheShareOfASoftmax) {
  constexpr std::uint32_t kDim = 20, kCount = 50;  // not a multiple of the lanes
  std::vector<float> query(kDim), keys(kDim * kCount);
  for (std::size_t i = 0; i < query.size(); ++i) query[i] = std::sin(float(i) + 1);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = std::cos(0.7f * float(i));
  const std::vector<std::uint32_t> positions{0, 7, 49};
  double all = 0, covered = 0;
  for (std::uint32_t p = 0; p < kCount; ++p) {
    double score = 0;
    for (std::uint32_t d = 0; d < kDim; ++d) score += double{query[d]} * double{keys[p * kDim + d]};
    all += std::exp(score);
    if (p == 0 || p == 7 || p == 49) covered += std::exp(score);
  }
  EXPECT_NEAR(covered_share(query.data(), kDim, keys.data(), kCount, positions), covered / all,
              1e-5);
  std::vector<std::uint32_t> every(kCount);
  for (std::uint32_t p = 0; p < kCount; ++p) every[p] = p;
  EXPECT_NEAR(covered_share(query.data(), kDim, keys.data(), kCount, every), 1, 1e-9);
  EXPECT_EQ(covered_share(query.data(), kDim, keys.data(), kCount, {}), 0);
}

TEST(AttentionMass, HoldsForScoresFarFromZero) {
  const std::vector<float> query{300, 0}, keys{3, 0, -3, 0, 3, 0};
  const std::vector<std::uint32_t> one{2};
  EXPECT_NEAR(covered_share(query.data(), 2, keys.data(), 3, one), 0.5, 1e-6);
}

}  // namespace
}  // namespace thermocline
