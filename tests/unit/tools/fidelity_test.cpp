#include "tools/thermocline/fidelity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tools/thermocline/spread.h"

namespace thermocline {
namespace {

std::vector<float> logits_of(std::initializer_list<double> probabilities, float shift) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)) + shift);
  return logits;
}

TEST(Fidelity, OfADistributionWithItselfIsNoDifference) {
  const auto full = logits_of({0.5, 0.3, 0.2}, 0), same = logits_of({0.5, 0.3, 0.2}, 40);
  const StepFidelity step = compare_logits(full, same, 1);
  EXPECT_NEAR(step.divergence, 0, 1e-6);
  EXPECT_TRUE(step.same_top);
  EXPECT_EQ(step.regret, 0);
  EXPECT_NEAR(step.full_nll, -std::log(0.3), 1e-6);
  EXPECT_NEAR(step.other_nll, -std::log(0.3), 1e-6);
}

TEST(Fidelity, IsTheTextbooksDivergence) {
  const auto full = logits_of({0.5, 0.3, 0.2}, 0), other = logits_of({0.25, 0.7, 0.05}, -3);
  const StepFidelity step = compare_logits(full, other, 2);
  const double expected =
      0.5 * std::log(0.5 / 0.25) + 0.3 * std::log(0.3 / 0.7) + 0.2 * std::log(0.2 / 0.05);
  EXPECT_NEAR(step.divergence, expected, 1e-6);
  EXPECT_FALSE(step.same_top);
  EXPECT_NEAR(step.regret, std::log(0.5 / 0.3), 1e-6);
  EXPECT_NEAR(step.other_nll, -std::log(0.05), 1e-6);
}

TEST(Fidelity, HoldsFarFromZero) {
  const std::vector<float> full{900, 899, -900}, other{-900, -901, 900};
  const StepFidelity step = compare_logits(full, other, 0);
  EXPECT_NEAR(step.divergence, 1800, 1);
  EXPECT_TRUE(std::isfinite(step.divergence));
}

TEST(Spread, IsTheMedianAndTheEnds) {
  EXPECT_EQ(spread_of({3, 1, 2}).median, 2);
  EXPECT_EQ(spread_of({4, 1, 2, 3}).median, 2.5);
  EXPECT_EQ(spread_of({3, 1, 2}).lowest, 1);
  EXPECT_EQ(spread_of({3, 1, 2}).highest, 3);
  EXPECT_EQ(spread_of({}).median, 0);
}

TEST(Spread, PercentilesAreTheNearestRank) {
  std::vector<double> values;
  for (int i = 1; i <= 100; ++i) values.push_back(i);
  EXPECT_EQ(percentile(values, 0.5), 50);
  EXPECT_EQ(percentile(values, 0.99), 99);
  EXPECT_EQ(percentile(values, 1), 100);
  EXPECT_EQ(percentile({5}, 0.01), 5);
}

}  // namespace
}  // namespace thermocline
