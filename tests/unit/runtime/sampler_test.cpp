#include "runtime/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

namespace thermocline {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Nothing but the temperature.
SamplingOptions plain(float temperature = 1.0f) {
  SamplingOptions options;
  options.temperature = temperature;
  options.top_k = 0;
  options.top_p = 1.0f;
  options.min_p = 0.0f;
  return options;
}

std::vector<float> logs(std::vector<double> probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

std::map<int, int> draw(const SamplingOptions& options, const std::vector<float>& logits, int n) {
  Sampler sampler(options);
  std::map<int, int> seen;
  for (int i = 0; i < n; ++i) ++seen[sampler.sample(logits)];
  return seen;
}

TEST(Sampler, GreedyTakesTheFirstOfTheBest) {
  Sampler sampler(plain(0.0f));
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, 2, 3}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{-kInfinity, -5, -kInfinity}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{kNan, -5, kNan, 2}), 3);
  EXPECT_EQ(sampler.sample(std::vector<float>{7}), 0);
  EXPECT_EQ(Sampler(plain(-1.0f)).sample(std::vector<float>{1, 3}), 1);
}

TEST(Sampler, DrawsInProportion) {
  const int n = 40000;
  const auto seen = draw(plain(), logs({0.5, 0.3, 0.15, 0.05}), n);
  const double expected[] = {0.5, 0.3, 0.15, 0.05};
  for (int t = 0; t < 4; ++t) {
    const double p = expected[t], deviation = std::sqrt(p * (1 - p) * n);
    EXPECT_NEAR(seen.at(t), p * n, 5 * deviation) << t;
  }
}

TEST(Sampler, TemperatureSharpens) {
  const int n = 40000;
  const auto seen = draw(plain(0.5f), logs({0.6, 0.4}), n);  // 0.36 : 0.16
  const double p = 0.36 / 0.52;
  EXPECT_NEAR(seen.at(0), p * n, 5 * std::sqrt(p * (1 - p) * n));
}

TEST(Sampler, TheSameSeedGivesTheSameText) {
  const auto logits = logs({0.2, 0.2, 0.2, 0.2, 0.2});
  const auto text = [&](std::uint64_t seed) {
    SamplingOptions options;
    options.seed = seed;
    Sampler sampler(options);
    std::vector<int> tokens;
    for (int i = 0; i < 50; ++i) tokens.push_back(sampler.sample(logits));
    return tokens;
  };
  EXPECT_EQ(text(1), text(1));
  EXPECT_NE(text(1), text(2));
  // Pinned: the random numbers are part of the answer.
  const std::vector<int> pinned = text(42);
  EXPECT_EQ(std::vector<int>(pinned.begin(), pinned.begin() + 8),
            (std::vector<int>{3, 3, 3, 0, 4, 0, 2, 1}));
}

TEST(Sampler, TopKKeepsTheBest) {
  SamplingOptions options = plain();
  options.top_k = 2;
  const auto seen = draw(options, logs({0.1, 0.3, 0.2, 0.15, 0.25}), 2000);
  EXPECT_EQ(seen.size(), 2u);
  EXPECT_TRUE(seen.contains(1) && seen.contains(4));
  options.top_k = 100;  // more than there are
  EXPECT_EQ(draw(options, logs({0.5, 0.5}), 200).size(), 2u);
  options.top_k = 1;
  EXPECT_EQ(draw(options, logs({0.4, 0.6}), 200).size(), 1u);
}

TEST(Sampler, TopKBreaksTiesByToken) {
  SamplingOptions options = plain();
  options.top_k = 3;
  const auto seen = draw(options, std::vector<float>(9, 1.0f), 2000);
  EXPECT_EQ(seen.size(), 3u);
  EXPECT_TRUE(seen.contains(0) && seen.contains(1) && seen.contains(2));
}

TEST(Sampler, TopPKeepsTheShortestListThatHoldsIt) {
  SamplingOptions options = plain();
  const auto logits = logs({0.1, 0.4, 0.3, 0.2});
  options.top_p = 0.65f;
  EXPECT_EQ(draw(options, logits, 2000).size(), 2u);
  options.top_p = 0.75f;
  EXPECT_EQ(draw(options, logits, 2000).size(), 3u);
  options.top_p = 0.0f;
  EXPECT_EQ(draw(options, logits, 200).size(), 1u);
}

TEST(Sampler, MinPIsRelativeToTheBest) {
  SamplingOptions options = plain();
  options.min_p = 0.4f;
  const auto seen = draw(options, logs({0.5, 0.21, 0.19, 0.1}), 2000);
  EXPECT_EQ(seen.size(), 2u);
  EXPECT_TRUE(seen.contains(0) && seen.contains(1));
  options.min_p = 1.0f;
  EXPECT_EQ(draw(options, logs({0.5, 0.3}), 200).size(), 1u);
}

// llama.cpp's order: what the temperature does comes after the cuts.
TEST(Sampler, CutsComeBeforeTheTemperature) {
  SamplingOptions options = plain(100.0f);
  options.min_p = 0.1f;
  EXPECT_EQ(draw(options, logs({0.9, 0.05, 0.05}), 500).size(), 1u);
}

TEST(Sampler, RepetitionIsPenalizedOnBothSidesOfZero) {
  SamplingOptions options = plain(0.0f);
  options.repeat_penalty = 2.0f;
  {
    Sampler sampler(options);
    sampler.accept(0);
    EXPECT_EQ(sampler.sample(std::vector<float>{3, 2}), 1);
    EXPECT_EQ(sampler.sample(std::vector<float>{5, 2}), 0);
    EXPECT_EQ(sampler.sample(std::vector<float>{-1, -1.5f}), 1);
  }
  options.repeat_last_n = 2;  // the window forgets
  Sampler sampler(options);
  sampler.accept(0);
  sampler.accept(0);
  sampler.accept(1);
  EXPECT_EQ(sampler.sample(std::vector<float>{3, 3, 2}), 2);
  sampler.accept(2);
  EXPECT_EQ(sampler.sample(std::vector<float>{3, 3, 2}), 0);
  options.repeat_last_n = -1;
  Sampler all(options);
  all.accept(0);
  for (int i = 0; i < 1000; ++i) all.accept(1);
  EXPECT_EQ(all.sample(std::vector<float>{3, 3, 2}), 2);
  options.repeat_last_n = 0;
  Sampler off(options);
  off.accept(0);
  EXPECT_EQ(off.sample(std::vector<float>{3, 2}), 0);
}

// A token is penalized while it is among the last ones, and not a token longer.
TEST(Sampler, TheWindowOfRepetitionsForgets) {
  constexpr int kTokens = 5, kNeverSaid = kTokens;
  for (const int last_n : {1, 2, 3, 7}) {
    SamplingOptions options = plain(0.0f);
    options.repeat_penalty = 2.0f;
    options.repeat_last_n = last_n;
    Sampler sampler(options);
    std::vector<int> said;
    std::mt19937 random(static_cast<unsigned>(last_n));
    for (int i = 0; i < 60; ++i) {
      said.push_back(static_cast<int>(random() % kTokens));
      sampler.accept(said.back());
      const std::size_t recent = std::min<std::size_t>(said.size(), static_cast<unsigned>(last_n));
      for (int t = 0; t < kTokens; ++t) {
        // The best unless it is halved.
        std::vector<float> logits(kTokens + 1, 0.0f);
        logits[static_cast<unsigned>(t)] = 3.0f;
        logits[kNeverSaid] = 2.0f;
        const bool penalized =
            std::count(said.end() - static_cast<long>(recent), said.end(), t) > 0;
        ASSERT_EQ(sampler.sample(logits), penalized ? kNeverSaid : t)
            << "the last " << last_n << ", after " << said.size() << " tokens";
      }
    }
  }
}

TEST(Sampler, BrokenLogitsStillGiveAToken) {
  SamplingOptions options;
  for (const std::vector<float>& logits :
       {std::vector<float>(5, kNan), std::vector<float>(5, -kInfinity),
        std::vector<float>{kInfinity, kNan, 0, kInfinity}}) {
    Sampler sampler(options);
    const int token = sampler.sample(logits);
    EXPECT_GE(token, 0);
    EXPECT_LT(token, 5);
  }
  Sampler sampler(plain());
  for (int i = 0; i < 200; ++i) EXPECT_EQ(sampler.sample(std::vector<float>{kNan, 1, kNan}), 1);
}

TEST(Sampler, ItsStateHoldsItsOptions) {
  SamplingOptions options;
  options.temperature = 0.1f;
  options.top_k = -3;
  options.top_p = 0.123456789f;
  options.min_p = 0;
  options.repeat_penalty = 1.3f;
  options.repeat_last_n = -1;
  options.seed = 5;
  const auto found = Sampler::options_in(Sampler(options).state());
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(found->temperature, options.temperature);
  EXPECT_EQ(found->top_k, options.top_k);
  EXPECT_EQ(found->top_p, options.top_p);
  EXPECT_EQ(found->min_p, options.min_p);
  EXPECT_EQ(found->repeat_penalty, options.repeat_penalty);
  EXPECT_EQ(found->repeat_last_n, options.repeat_last_n);
  for (const char* none : {"", "1 2 3", "a b c d e f g", "99999999999 1 1 1 1 1 1"})
    EXPECT_EQ(Sampler::options_in(none).error().code, ErrorCode::corrupt) << none;
}

TEST(Sampler, GoesOnFromItsState) {
  const std::vector<float> logits = logs({0.3, 0.3, 0.2, 0.2});
  Sampler whole(plain());
  std::vector<int> due;
  std::string state;
  for (int i = 0; i < 60; ++i) {
    if (i == 20) state = whole.state();
    due.push_back(whole.sample(logits));
  }
  SamplingOptions other_seed = plain();
  other_seed.seed = 99;
  Sampler resumed(other_seed);
  ASSERT_TRUE(resumed.restore(state));
  for (int i = 20; i < 60; ++i) ASSERT_EQ(resumed.sample(logits), due[std::size_t(i)]) << i;
  for (const char* wrong : {"", "x", "1 2 3"}) {
    const Status refused = resumed.restore(wrong);
    ASSERT_FALSE(refused) << wrong;
    EXPECT_EQ(refused.error().code, ErrorCode::corrupt);
  }
}

}  // namespace
}  // namespace thermocline
