// Where hidden rows are while layers of two processors work on them, with a device of which every
// call is seen.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/base/workers.h"
#include "kernels/cpu/table.h"
#include "runtime/model/layer.h"

namespace thermocline {
namespace {

constexpr std::size_t kWidth = 32, kWords = 4, kRows = 3;

// Adds 1 to its rows in every layer, and writes down what it was asked for.
class SeenDevice final : public DeviceLayers {
 public:
  Status add(const LayerWeights&) override { return {}; }
  Status add(const HeadWeights&) override { return {}; }
  Status write(MatView<const float> hidden) override {
    calls += " write" + std::to_string(hidden.rows());
    rows_.assign(hidden.data(), hidden.data() + hidden.rows() * hidden.cols());
    return {};
  }
  Status project(std::size_t layer, MatView<float>, MatView<float>, MatView<float>) override {
    calls += " project" + std::to_string(layer);
    return {};
  }
  Status finish(std::size_t layer, MatView<const float>) override {
    calls += " finish" + std::to_string(layer);
    for (float& x : rows_) x += 1.0f;
    return {};
  }
  Result<RowsThere> project(std::size_t layer) override {
    calls += " project_there" + std::to_string(layer);
    return RowsThere{};
  }
  Status finish(std::size_t layer) override {
    calls += " there";
    return finish(layer, {});
  }
  Status head(MatView<float> logits) override {
    calls += " head" + std::to_string(logits.rows());
    return {};
  }
  std::uint64_t replays() const override { return 0; }
  DeviceQueue& queue() override { return queue_; }
  Status read(MatView<float> hidden) override {
    calls += " read" + std::to_string(hidden.rows());
    EXPECT_EQ(hidden.rows() * hidden.cols(), rows_.size());
    std::copy(rows_.begin(), rows_.end(), hidden.data());
    return {};
  }
  Status wait() override {
    calls += " wait";
    return {};
  }

  std::string calls;

 private:
  DeviceQueue queue_;
  std::vector<float> rows_;
};

// A model of two layers, both on the device: word w's row is of w.
class LayerWorkTest : public testing::Test {
 protected:
  LayerWorkTest() {
    spec_.width = kWidth;
    spec_.feed_forward = kWidth;
    spec_.layers.resize(2);
    for (std::size_t w = 0; w < kWords; ++w)
      embedding_.insert(embedding_.end(), kWidth, static_cast<float>(w));
    weights_.embedding = weights_.output = {
        WeightType::f32, reinterpret_cast<const std::byte*>(embedding_.data()), kWords, kWidth};
    weights_.output_norm = norm_;
    weights_.layers.resize(2);
    model_ = {&spec_, &weights_, {&workers_, all_cpu_tables().front()}, &device_, LayerId{0}};
    scratch_ = *LayerScratch::create(model_, kRows);
  }

  MatView<float> some(std::size_t first, std::size_t count) {
    return MatView<float>(hidden_.data(), kRows, kWidth).rows_from(first, count);
  }
  void pass(LayerWork* work, LayerId l, MatView<float> hidden) {
    EXPECT_TRUE(work->project(l, hidden, {}));
    EXPECT_TRUE(work->finish(l, {}, hidden));
  }
  std::string calls() { return std::exchange(device_.calls, ""); }
  // The first value of each row.
  std::vector<float> values() const { return {hidden_[0], hidden_[kWidth], hidden_[2 * kWidth]}; }

  ModelSpec spec_;
  Weights weights_;
  std::vector<float> embedding_, norm_ = std::vector<float>(kWidth, 1.0f);
  Workers workers_{1};
  SeenDevice device_;
  Model model_;
  LayerScratch scratch_;
  std::vector<float> hidden_ = std::vector<float>(kRows * kWidth);
  std::vector<float> logits_ = std::vector<float>(kWords);
};

TEST_F(LayerWorkTest, RowsOfAStepCrossOnceEachWay) {
  {
    LayerWork work(model_, &scratch_);
    work.embed(std::vector{1, 2, 3}, some(0, 3));
    for (const LayerId l : {LayerId{0}, LayerId{1}}) pass(&work, l, some(0, 3));
    EXPECT_EQ(calls(), " write3 project0 finish0 project1 finish1");
    ASSERT_TRUE(work.head(some(2, 1), {logits_.data(), 1, kWords}));
    EXPECT_EQ(calls(), " read3");
    EXPECT_EQ(values(), (std::vector<float>{3, 4, 5}));
    ASSERT_TRUE(work.head(some(0, 1), {logits_.data(), 1, kWords}));
    EXPECT_EQ(calls(), "");
  }
  EXPECT_EQ(calls(), " wait");
}

// With the head there as well they do not come back at all, unless other rows' logits are wanted.
TEST_F(LayerWorkTest, RowsStayForTheHead) {
  model_.head_on_device = true;
  LayerWork work(model_, &scratch_);
  work.embed(std::vector{1, 2, 3}, some(0, 3));
  EXPECT_TRUE(work.project_there(LayerId{0}, some(0, 3)));
  EXPECT_TRUE(work.finish_there(LayerId{0}, some(0, 3)));
  pass(&work, LayerId{1}, some(0, 3));
  EXPECT_EQ(calls(), " write3 project_there0 there finish0 project1 finish1");
  std::vector<float> logits(kRows * kWords);
  ASSERT_TRUE(work.head(some(0, 3), {logits.data(), kRows, kWords}));
  EXPECT_EQ(calls(), " head3");
  ASSERT_TRUE(work.head(some(2, 1), {logits.data(), 1, kWords}));
  EXPECT_EQ(calls(), " read3 write1 head1");
  EXPECT_EQ(values(), (std::vector<float>{3, 4, 5}));
}

TEST_F(LayerWorkTest, RowsComeBackBeforeOthersTakeTheirPlace) {
  LayerWork work(model_, &scratch_);
  work.embed(std::vector{1, 2, 3}, some(0, 3));
  for (const LayerId l : {LayerId{0}, LayerId{1}}) {
    for (const auto& [first, count] : {std::pair{0, 2}, {2, 1}})
      ASSERT_TRUE(work.project(l, some(first, count), {}));
    for (const auto& [first, count] : {std::pair{0, 2}, {2, 1}})
      ASSERT_TRUE(work.finish(l, {}, some(first, count)));
  }
  ASSERT_TRUE(work.head(some(2, 1), {logits_.data(), 1, kWords}));
  EXPECT_EQ(values(), (std::vector<float>{3, 4, 5}));
  EXPECT_EQ(calls(),
            " write2 project0 write1 project0 write2 finish0 read2 write1 finish0"
            " read1 write2 project1 write1 project1 write2 finish1 read2 write1 finish1 read1");
}

// New rows in the memory of others: what a device has is of those.
TEST_F(LayerWorkTest, RowsThatNobodyAskedForAreForgotten) {
  LayerWork work(model_, &scratch_);
  work.embed(std::vector{1, 1, 1}, some(0, 3));
  pass(&work, LayerId{0}, some(0, 3));
  calls();
  work.embed(std::vector{3, 2, 1}, some(0, 3));
  for (const LayerId l : {LayerId{0}, LayerId{1}}) pass(&work, l, some(0, 3));
  ASSERT_TRUE(work.head(some(2, 1), {logits_.data(), 1, kWords}));
  EXPECT_EQ(calls(), " write3 project0 finish0 project1 finish1 read3");
  EXPECT_EQ(values(), (std::vector<float>{5, 4, 3}));
}

}  // namespace
}  // namespace thermocline
