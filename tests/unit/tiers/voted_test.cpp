// Votes on a prompt's rows, beside plain sums of softmax in double.
#include "tiers/retain/voted.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/base/half.h"

namespace thermocline {
namespace {

constexpr HeadShape kShape{3, 16, 32};
constexpr std::uint32_t kHeads = 2, kSinks = 4, kSeen = 150, kFirst = 70, kLeave = 100;

const CpuTable& table() { return **choose_cpu_table("auto"); }

class Voted : public ::testing::Test {
 protected:
  Voted() {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    const RowLayout layout{RowFormat::f16, RowFormat::f16, 2 * kShape.key_dim,
                           2 * kShape.value_dim};
    data_.resize((kSinks + kSeen) * kHeads * (kShape.key_dim + kShape.value_dim));
    for (f16& x : data_) x = to_f16(normal(random));
    const auto* bytes = reinterpret_cast<const std::byte*>(data_.data());
    sinks_ = {layout, kHeads, 0, kSinks, bytes, std::size_t{kSinks} * layout.bytes()};
    seen_ = {layout,
             kHeads,
             kFirst,
             kSeen,
             bytes + std::size_t{kSinks} * kHeads * layout.bytes(),
             std::size_t{kSeen} * layout.bytes()};
    query_.resize(kSeen * kShape.heads * kShape.key_dim);
    for (float& x : query_) x = 0.6f * normal(random);
  }
  Ballot ballot(std::uint32_t first_query, std::uint32_t stride, std::uint32_t queries) const {
    Ballot ballot;
    ballot.shape = kShape;
    ballot.head = 1;
    ballot.sinks = sinks_;
    ballot.seen = seen_;
    ballot.rows = kLeave;
    ballot.queries = queries;
    ballot.first_query = first_query;
    ballot.stride = stride;
    ballot.query = query_.data();
    ballot.scores = scores_.data();
    return ballot;
  }
  std::vector<double> oracle(const Ballot& b) const {
    std::vector<double> votes(kLeave);
    for (std::uint32_t q = 0; q < b.queries * kShape.heads; ++q) {
      const std::uint32_t position = b.first_query + q / kShape.heads * b.stride;
      const auto weight = [&](const f16* key) {
        double dot = 0;
        for (std::uint32_t d = 0; d < kShape.key_dim; ++d)
          dot += double{to_float(key[d])} * query_[q * kShape.key_dim + d];
        return std::exp(dot);
      };
      double sum = 0;
      for (std::uint32_t r = 0; r < kSinks; ++r) sum += weight(sinks_.key(b.head, r));
      for (std::uint32_t r = 0; r < kSeen && kFirst + r <= position; ++r)
        sum += weight(seen_.key(b.head, r));
      for (std::uint32_t r = 0; r < kLeave && kFirst + r <= position; ++r)
        votes[r] += b.stride * weight(seen_.key(b.head, r)) / sum;
    }
    return votes;
  }
  static void expect_near(const std::vector<float>& votes, const std::vector<double>& right) {
    for (std::uint32_t r = 0; r < kLeave; ++r)
      ASSERT_NEAR(votes[r], right[r], 1e-3 * (1 + right[r])) << "row " << r;
  }
  static std::vector<float> vote(const Result<std::unique_ptr<VotedRetainer>>& retainer,
                                 const Ballot& ballot) {
    EXPECT_TRUE(retainer) << retainer.error().message;
    std::vector<float> votes(kLeave);
    (*retainer)->vote(ballot, votes.data());
    return votes;
  }

  std::vector<f16> data_;
  std::vector<float> query_;
  mutable std::vector<float> scores_ = std::vector<float>(kShape.heads * (kSinks + kSeen));
  RawRows sinks_, seen_;
};

TEST_F(Voted, AVoteIsTheShareOfAttentionThatEachQueryGave) {
  const Ballot last = ballot(kFirst + kSeen - 20, 1, 20);
  VotedOptions options;
  options.pool = 1;
  expect_near(vote(VotedRetainer::snapkv(options, table()), last), oracle(last));
}

TEST_F(Voted, AQueryHasNoVoteOnWhatCameAfterIt) {
  const Ballot all = ballot(kFirst, 16, 9);
  const auto right = oracle(all);
  expect_near(vote(VotedRetainer::h2o({}, table()), all), right);
  const Ballot early = ballot(kFirst, 1, 50);
  const auto votes = vote(VotedRetainer::h2o({}, table()), early);
  EXPECT_GT(votes[49], 0.0f);
  for (std::uint32_t r = 50; r < kLeave; ++r) EXPECT_EQ(votes[r], 0.0f);
}

// In earlier calls' rows it has none at all.
TEST_F(Voted, AQueryBeforeTheRowsThatAreSeenIsPassedOver) {
  const auto votes = vote(VotedRetainer::h2o({}, table()), ballot(kFirst - 60, 1, 60));
  for (const float v : votes) EXPECT_EQ(v, 0.0f);
}

// Half as much of twice as much; and what was given before stays.
TEST_F(Voted, AShareIsOfAllThatWasAttended) {
  const Ballot one = ballot(kFirst + kSeen - 1, 1, 1);
  const auto alone = oracle(one);
  for (const float beside : {0.5f, 1.0f, 3.0f}) {
    std::vector<AttnState> attended;
    for (std::uint32_t h = 0; h < kShape.heads; ++h) {
      double sum = 0;
      const auto add = [&](const RawRows& rows) {
        for (std::uint32_t r = 0; r < rows.rows; ++r) {
          double dot = 0;
          for (std::uint32_t d = 0; d < kShape.key_dim; ++d)
            dot += double{to_float(rows.key(one.head, r)[d])} * query_[h * kShape.key_dim + d];
          sum += std::exp(dot);
        }
      };
      add(sinks_);
      add(seen_);
      // In parts of some larger weight.
      attended.push_back({3.0f, static_cast<float>((1 + beside) * sum / std::exp(3.0)), nullptr});
    }
    Ballot of_all = one;
    of_all.attended = attended.data();
    for (const bool with_sinks : {true, false}) {
      if (!with_sinks) of_all.sinks = {};
      const auto retainer = VotedRetainer::h2o({}, table());
      std::vector<float> votes(kLeave, 0.25f);
      (*retainer)->vote(of_all, votes.data());
      for (std::uint32_t r = 0; r < kLeave; ++r)
        ASSERT_NEAR(votes[r] - 0.25f, alone[r] / (1 + beside), 1e-4) << r;
    }
  }
}

TEST_F(Voted, WhatIsNotANumberHasNoVote) {
  query_.assign(query_.size(), std::nanf(""));
  for (const float v : vote(VotedRetainer::h2o({}, table()), ballot(kFirst, 16, 9)))
    EXPECT_EQ(v, 0.0f);
}

// Whatever rounding, or another processor, made of all that was attended.
TEST_F(Voted, NoVoteIsMoreThanAllOrNotANumber) {
  Ballot one = ballot(kFirst + kSeen - 1, 1, 1);
  for (const AttnState all : {AttnState{0.0f, 1e-30f, nullptr}, AttnState{-1e4f, 1.0f, nullptr},
                              AttnState{0.0f, std::nanf(""), nullptr}}) {
    const std::vector<AttnState> attended(kShape.heads, all);
    one.attended = attended.data();
    for (const float v : vote(VotedRetainer::h2o({}, table()), one)) {
      EXPECT_GE(v, 0.0f);
      EXPECT_LE(v, static_cast<float>(kShape.heads));
    }
  }
}

TEST_F(Voted, VotesArePooledOverPositions) {
  const Ballot last = ballot(kFirst + kSeen - 20, 1, 20);
  const auto single = oracle(last);
  for (const bool largest : {false, true}) {
    VotedOptions options;
    options.pool = 5;
    options.by_largest = largest;
    std::vector<double> right(kLeave);
    for (int r = 0; r < int{kLeave}; ++r)
      for (int at = std::max(0, r - 2); at <= std::min<int>(kLeave - 1, r + 2); ++at) {
        const double vote_at = single[static_cast<std::size_t>(at)];
        double& to = right[static_cast<std::size_t>(r)];
        to = largest ? std::max(to, vote_at) : to + vote_at / 5;
      }
    expect_near(vote(VotedRetainer::snapkv(options, table()), last), right);
  }
}

TEST_F(Voted, SoManyAreKept) {
  const auto share = VotedRetainer::h2o({.share = 0.1}, table());
  ASSERT_TRUE(share);
  EXPECT_EQ((*share)->kept(1000, 5000), 100u);
  EXPECT_EQ((*share)->kept(5, 5), 1u);
  const auto rows = VotedRetainer::h2o({.rows = 1000}, table());
  ASSERT_TRUE(rows);
  EXPECT_EQ((*rows)->kept(2000, 10000), 200u);  // a segment's part
  EXPECT_EQ((*rows)->kept(500, 500), 500u);
  for (const auto* retainer : {&share, &rows}) {  // a number is a prompt's
    EXPECT_EQ((**retainer)->kept_of_steps(64), 6u);
    EXPECT_EQ((**retainer)->kept_of_steps(5), 1u);
  }
  EXPECT_EQ((*VotedRetainer::snapkv({}, table()))->kept_of_steps(64), 64u);
}

TEST_F(Voted, OptionsThatCannotBeAreRefused) {
  const auto even = VotedRetainer::snapkv({.pool = 4}, table());
  ASSERT_FALSE(even);
  EXPECT_NE(even.error().message.find("pool = 4"), std::string::npos);
  const auto share = VotedRetainer::h2o({.share = 1.5}, table());
  ASSERT_FALSE(share);
  EXPECT_NE(share.error().message.find("share = 1.5"), std::string::npos);
}

}  // namespace
}  // namespace thermocline
