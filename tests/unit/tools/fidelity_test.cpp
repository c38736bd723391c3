#include "tools/thermocline/fidelity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tools/thermocline/fidelity_row.h"
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

TEST(MeanRow, HasWhatAllRowsHave) {
  using Json = nlohmann::ordered_json;
  const Json one{{"text", "a"},
                 {"method", "m"},
                 {"kl_mean", 1},
                 {"kl_max", 2},
                 {"nll_full", 0.5},
                 {"nll", 1},
                 {"read", 0.5},
                 {"speed", nullptr},
                 {"alone", 1},
                 {"kl_steps", {0, 2}},
                 {"sets", {"x"}},
                 {"ranks", {4, 8}},
                 {"mass_by_layer", {nullptr, 0.5, 1}}};
  Json other = one;
  other["text"] = "b";
  other["kl_max"] = 3;
  other["kl_steps"] = {3};
  other["nll"] = 2;
  other["speed"] = 7;
  other["ranks"] = {6, 8};
  other["mass_by_layer"] = {nullptr, 0.25, 1};
  other.erase("alone");
  for (const auto& rows : {std::vector{one, other}, std::vector{other, one}}) {
    const Json mean = mean_row(rows);
    EXPECT_EQ(mean.at("text"), "mean of 2");
    EXPECT_EQ(mean.at("method"), "m");
    EXPECT_EQ(mean.at("sets"), Json::array({"x"}));
    EXPECT_EQ(mean.at("read"), 0.5);
    EXPECT_EQ(mean.at("steps"), 3);
    EXPECT_EQ(mean.at("ranks"), Json::array({5, 8}));
    EXPECT_EQ(mean.at("kl_max"), 3);
    EXPECT_NEAR(mean.at("kl_mean").get<double>(), 5.0 / 3, 1e-12) << "of all steps";
    EXPECT_EQ(mean.at("kl_median"), 2) << "of all steps";
    EXPECT_EQ(mean.at("kl_p99"), 3);
    EXPECT_NEAR(mean.at("nll").get<double>(), 4.0 / 3, 1e-12) << "of all steps";
    EXPECT_NEAR(mean.at("ppl").get<double>(), std::exp(4.0 / 3), 1e-12);
    EXPECT_EQ(mean.at("mass_by_layer"), Json::array({nullptr, 0.375, 1}));
    EXPECT_EQ(mean.at("mass_lowest"), 0.375);
    for (const char* name : {"speed", "alone"}) EXPECT_FALSE(mean.contains(name)) << name;
  }
  for (const Json& odd : {Json("x"), Json{{"a", 1}}, Json{"x", 1}, Json(2)}) {
    Json row = one;
    row["mass_by_layer"] = odd;
    EXPECT_EQ(mean_row(std::vector{row, row}).at("text"), "mean of 2");
    EXPECT_EQ(mean_row(std::vector{row, one}).at("text"), "mean of 2");
  }
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
