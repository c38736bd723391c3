// Which layer's selection a layer reads.
#include "retrieval/select/share.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/unit/retrieval/counted_selector.h"

namespace thermocline {
namespace {

class Share : public ::testing::Test {
 protected:
  void make(std::uint32_t choose_in, std::uint32_t again) {
    auto made = SharingSelector::wrap(std::make_unique<CountedSelector>(&calls_),
                                      {kLayersShare, choose_in, again});
    ASSERT_TRUE(made) << made.error().message;
    selector_ = std::move(*made);
  }
  // Which call of the selector inside made what each layer reads; 0: everything.
  std::vector<int> step(std::uint32_t layers) {
    shared_.forget();
    std::vector<int> calls;
    for (std::uint32_t l = 0; l < layers; ++l) calls.push_back(choose(l, &shared_));
    return calls;
  }
  int choose(std::uint32_t layer, KeptSelection* shared) {
    const std::vector<thermocline::Run> runs(1);
    ListQuery list;
    list.runs = runs;
    list.shared = shared;
    ReadList read;
    EXPECT_TRUE(
        selector_->choose({LayerId{layer}, {1, 16, 16}, {&list, 1}}, Workers(1), {&read, 1}));
    return call_of(read);
  }

  CountedSelector::Calls calls_;
  std::unique_ptr<Selector> selector_;
  KeptSelection shared_;
};

TEST_F(Share, LayersReadWhatTheLastOneThatChoseLiked) {
  make(2, 5);
  EXPECT_TRUE(selector_->facts().shares);
  EXPECT_FALSE(selector_->facts().remembers);
  // The first two for themselves; the two that choose read everything.
  EXPECT_EQ(step(8), (std::vector<int>{1, 2, 0, 3, 3, 0, 4, 4}));
  EXPECT_EQ(step(4), (std::vector<int>{5, 6, 0, 7}));
}

TEST_F(Share, OneLayerMayChooseForAll) {
  make(0, 0);
  EXPECT_EQ(step(4), (std::vector<int>{0, 1, 1, 1}));
}

// A layer that is named and has a sliding window is not asked.
TEST_F(Share, ALayerBeforeWhichNoneChoseDoesSo) {
  make(0, 0);
  EXPECT_EQ(choose(1, &shared_), 1);
  EXPECT_EQ(choose(2, &shared_), 2);
  EXPECT_EQ(choose(0, nullptr), 3);  // not in a step
}

TEST_F(Share, EstimatesAreNotShared) {
  make(0, 0);
  calls_.estimates = true;
  EXPECT_EQ(step(3), (std::vector<int>{0, 2, 3}));
}

TEST_F(Share, RowsHaveToLieInPositionOrder) {
  const auto made = SharingSelector::wrap(std::make_unique<CountedSelector>(&calls_, RowOrder::own),
                                          {kLayersShare, 2, 13});
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, ErrorCode::unsupported);
  for (const char* part : {"select.layers = share", "select.by = counted", "position order"})
    EXPECT_NE(made.error().message.find(part), std::string::npos) << made.error().message;
}

}  // namespace
}  // namespace thermocline
