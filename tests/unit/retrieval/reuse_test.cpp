// When a selection is read again, and when another is made.
#include "retrieval/select/reuse.h"

#include <gtest/gtest.h>

#include <array>

#include "tests/unit/retrieval/counted_selector.h"

namespace thermocline {
namespace {

constexpr HeadShape kShape{2, 16, 16};
using Query = std::array<float, 32>;  // of both query heads

Query along(float first, float second) {
  Query query{};
  query[3] = first;
  query[20] = second;  // of the other head
  return query;
}

// Steps of one timeline in one layer and head, as the cache takes them.
class Reuse : public ::testing::Test {
 protected:
  void make(double similarity, std::uint32_t reuse = kReuseSimilar) {
    auto made =
        ReusingSelector::wrap(std::make_unique<CountedSelector>(&calls_), {reuse, similarity});
    ASSERT_TRUE(made) << made.error().message;
    selector_ = std::move(*made);
  }
  // Which call of the selector inside made what is read.
  int step(const Query& query) {
    ListQuery list;
    list.query = query.data();
    list.kept = now_.made ? &now_ : nullptr;
    list.keep = &next_;
    const auto chosen = choose(list);
    if (next_.made) std::swap(now_, next_);
    next_.forget();
    return chosen;
  }
  int choose(const ListQuery& list) {
    const auto chosen =
        selector_->choose({LayerId{0}, kShape, {&list, 1}}, Workers(1), {&read_, 1});
    EXPECT_TRUE(chosen);
    bytes_ = chosen->index_bytes;
    return call_of(read_);
  }

  CountedSelector::Calls calls_;
  std::unique_ptr<Selector> selector_;
  KeptSelection now_, next_;
  ReadList read_;
  std::uint64_t bytes_ = 0;
};

TEST_F(Reuse, ASelectionIsReadAgainWhileQueriesAreAlike) {
  make(0.9);
  EXPECT_TRUE(selector_->facts().remembers);
  EXPECT_EQ(step(along(1, 0)), 1);
  EXPECT_EQ(bytes_, 100u);
  EXPECT_EQ(step(along(5, 0)), 1);  // an angle has no length
  EXPECT_EQ(bytes_, 0u);
  EXPECT_EQ(step(along(1, 0.4f)), 1);   // a cosine of 0.93
  EXPECT_EQ(step(along(1, 0.55f)), 2);  // 0.88
  EXPECT_EQ(step(along(-1, -0.55f)), 3);
  EXPECT_EQ(step(along(1, 0)), 4);
}

// Else a selection would drift with the queries, never far from the last one's.
TEST_F(Reuse, ItIsComparedWithTheQueriesThatItWasMadeFor) {
  make(0.9);
  EXPECT_EQ(step(along(1, 0)), 1);
  EXPECT_EQ(step(along(1, 0.4f)), 1);
  EXPECT_EQ(step(along(1, 0.8f)), 2);  // 0.78 to the first, 0.95 to the one before
  EXPECT_EQ(step(along(1, 0.4f)), 2);
}

TEST_F(Reuse, WhatIsNotKeptIsMadeAnew) {
  make(-1);
  EXPECT_EQ(step(along(1, 0)), 1);
  now_.forget();  // as a seal does
  EXPECT_EQ(step(along(1, 0)), 2);
  EXPECT_EQ(step(along(0, 1)), 2);
  EXPECT_EQ(step(Query{}), 2);
  const Query query = along(1, 0);
  ListQuery list;  // of no step
  list.query = query.data();
  EXPECT_EQ(choose(list), 3);
}

TEST_F(Reuse, AQueryOfNoDirectionIsLikeNone) {
  make(0.5);
  EXPECT_EQ(step(Query{}), 1);
  EXPECT_EQ(step(Query{}), 2);
}

TEST_F(Reuse, EstimatesAreNotReadAgain) {
  make(-1);
  calls_.estimates = true;
  EXPECT_EQ(step(along(1, 0)), 1);
  EXPECT_EQ(step(along(1, 0)), 2);
}

TEST_F(Reuse, OfNoneIsTheSelectorItself) {
  make(0.9, kReuseNever);
  EXPECT_FALSE(selector_->facts().remembers);
  EXPECT_EQ(step(along(1, 0)), 1);
  EXPECT_EQ(step(along(1, 0)), 2);
}

TEST_F(Reuse, OptionsOutsideOfTheirRangeAreRefused) {
  const auto made =
      ReusingSelector::wrap(std::make_unique<CountedSelector>(&calls_), {kReuseSimilar, 1.5});
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, ErrorCode::invalid_argument);
  EXPECT_NE(made.error().message.find("similarity = 1.5"), std::string::npos);
}

}  // namespace
}  // namespace thermocline
