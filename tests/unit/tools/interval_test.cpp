#include "tools/thermocline/interval.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace thermocline {
namespace {

TEST(Wilson, IsTheTextbooksInterval) {
  // Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
  const struct {
    std::size_t hits, count;
    double low, high;
  } known[] = {{81, 263, 0.2553, 0.3662},
               {15, 148, 0.0624, 0.1605},
               {0, 20, 0.0000, 0.1611},
               {1, 29, 0.0061, 0.1718}};
  for (const auto& each : known) {
    const Interval interval = wilson(each.hits, each.count);
    EXPECT_NEAR(interval.low, each.low, 5e-5) << each.hits;
    EXPECT_NEAR(interval.high, each.high, 5e-5) << each.hits;
  }
  EXPECT_EQ(wilson(7, 7).high, 1);
  for (const std::size_t count : {3u, 50u}) EXPECT_EQ(wilson(0, count).low, 0) << "not 5e-17";
  EXPECT_EQ(wilson(0, 0).low, 0);
  EXPECT_EQ(wilson(0, 0).high, 1);
}

TEST(Bootstrap, HoldsTheMeanAndIsTheSameEachTime) {
  std::vector<double> values;
  for (int i = 0; i < 400; ++i) values.push_back(std::sin(i * 12.9898) * 3 + 5);
  const Interval interval = bootstrap_of_mean(values), again = bootstrap_of_mean(values);
  EXPECT_EQ(interval.low, again.low);
  EXPECT_EQ(interval.high, again.high);
  // A normal mean's: 1.96 standard errors of a sine's 3 / sqrt(2).
  const double half = 1.96 * 3 / std::sqrt(2.0) / 20;
  EXPECT_NEAR(interval.high - interval.low, 2 * half, 0.15 * half);
  EXPECT_NEAR((interval.high + interval.low) / 2, 5, 0.5 * half);
}

TEST(Bootstrap, OfOneValueOrNoneIsThat) {
  EXPECT_EQ(bootstrap_of_mean(std::vector<double>{3}).low, 3);
  EXPECT_EQ(bootstrap_of_mean(std::vector<double>{3}).high, 3);
  EXPECT_EQ(bootstrap_of_mean({}).high, 0);
}

}  // namespace
}  // namespace thermocline
