// What a device is handed of a layer's folds, against plain loops in double precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/attend_reference.h"
#include "kernels/device.h"
#include "tests/unit/device/each_device.h"

namespace thermocline {
namespace {

constexpr HeadShape kShape = {3, 32, 48};
constexpr std::uint32_t kRowBytes = (32 + 48) * 2;
constexpr std::size_t kBlocks = 12;

// Rows in a device's memory and, at the same distances, in the host's.
class DeviceAttentionTest : public OnAGpu {
 protected:
  void SetUp() override {
    OnAGpu::SetUp();
    if (!device_) return;
    std::vector<f16> values(kBlocks * kBlockRows * kRowBytes / sizeof(f16));
    for (f16& x : values) x = to_f16(static_cast<float>(random_() % 2001) / 500.0f - 2.0f);
    rows_.resize(values.size() * sizeof(f16));
    std::memcpy(rows_.data(), values.data(), rows_.size());
    there_ = *device_->take(rows_.size());
    ASSERT_TRUE(device_->write(there_, rows_));
    queries_.resize(5 * kShape.heads * kShape.key_dim);
    for (float& x : queries_) x = static_cast<float>(random_() % 2001) / 4000.0f - 0.25f;
  }
  void TearDown() override {
    if (device_) device_->give(there_);
  }

  // A fold of the blocks [first, last), scattered rows or all, for one of the queries.
  void add_fold(std::size_t query, std::size_t first, std::size_t last, bool all) {
    for (std::size_t b = first; b < last; ++b) {
      BlockView view;
      view.key = there_ + b * kBlockRows * kRowBytes;
      view.value = view.key + kShape.key_dim * sizeof(f16);
      view.rows = all ? kAllRows : (std::uint64_t{random_()} << 32 | random_()) | 1;
      blocks_.push_back(view);
    }
    HeadFold fold;
    fold.fold.key_stride = fold.fold.value_stride = kRowBytes;
    fold.query = queries_.data() + query * kShape.heads * kShape.key_dim;
    folds_.push_back(fold);
    blocks_of_.push_back(last - first);
  }
  std::span<const HeadFold> folds() {
    std::size_t at = 0;
    for (std::size_t i = 0; i < folds_.size(); ++i) {
      folds_[i].fold.blocks = std::span(blocks_).subspan(at, blocks_of_[i]);
      at += blocks_of_[i];
    }
    return folds_;
  }
  std::uint64_t bytes_of(std::uint64_t folds, std::uint64_t blocks) const {
    return attention_bytes(kShape, folds, folds, blocks);
  }

  // The same fold over the host's copy, in double.
  void expect_fold(const HeadFold& there, const DeviceAttention::States& states, std::size_t at) {
    std::vector<BlockView> blocks(there.fold.blocks.begin(), there.fold.blocks.end());
    for (BlockView& view : blocks) {
      view.key = rows_.data() + (view.key - there_);
      view.value = rows_.data() + (view.value - there_);
    }
    Fold fold = there.fold;
    fold.blocks = blocks;
    // Scores of 32 products of at most 0.5, sums of 256 weights, values of at most 2.
    const double u = std::ldexp(1.0, -24), weight = 2 * 40 * u * 16 + 300 * u;
    for (std::uint32_t h = 0; h < kShape.heads; ++h) {
      const auto wanted = attend_reference(there.query + h * kShape.key_dim, kShape, {&fold, 1});
      const std::size_t state = at * kShape.heads + h;
      for (std::uint32_t i = 0; i < kShape.value_dim; ++i) {
        const double got = double{states.acc[state * kShape.value_dim + i]} / states.sum[state];
        EXPECT_NEAR(got, wanted[i], 2 * 2 * 2 * weight);
      }
    }
  }

  std::mt19937 random_{5};
  std::vector<std::byte> rows_;
  std::byte* there_ = nullptr;
  std::vector<float> queries_;
  std::vector<HeadFold> folds_;
  std::vector<BlockView> blocks_;
  std::vector<std::size_t> blocks_of_;
};

TEST_F(DeviceAttentionTest, IsThatOfPlainLoops) {
  for (std::size_t i = 0; i < 20; ++i) {
    const std::size_t first = random_() % (kBlocks - 4);
    add_fold(i / 4, first, first + 1 + i % 4, i % 3 == 0);  // four folds read one query
  }
  // All at once; and with room for no more than three or so: what was left of an earlier launch,
  // and was not waited for, shows nowhere.
  for (const std::uint64_t bytes : {bytes_of(20, 80), bytes_of(3, 10), bytes_of(1, 4)}) {
    const auto attention = device_->open_attention(bytes, 0);
    ASSERT_TRUE(attention) << attention.error().message;
    ASSERT_TRUE((*attention)->begin(kShape, folds().last(1), 0));
    std::size_t launches = 0;
    for (std::size_t first = 0; first < folds_.size(); ++launches) {
      const auto begun = (*attention)->begin(kShape, folds().subspan(first), 0);
      ASSERT_TRUE(begun) << begun.error().message;
      ASSERT_GT(*begun, 0u);
      const auto states = (*attention)->finish();
      ASSERT_TRUE(states) << states.error().message;
      for (std::size_t i = 0; i < *begun; ++i) expect_fold(folds()[first + i], *states, i);
      first += *begun;
    }
    EXPECT_EQ(launches == 1, bytes == bytes_of(20, 80));
  }
}

// A fold's rows by rank are the same fold, where they lie scattered on the device or are sent there
// one after the other.
TEST_F(DeviceAttentionTest, SentRowsHaveTheBitsOfRowsThatLieThere) {
  constexpr std::size_t kFolds = 7;
  for (std::size_t i = 0; i < kFolds; ++i) {
    const std::size_t first = random_() % (kBlocks - 4);
    add_fold(i / 2, first, first + 1 + i % 4, i % 3 == 0);
  }
  constexpr std::uint64_t kOutbox =
      round_up(kFolds * kFoldRows * kRowBytes + kFolds * 64, kWorkApartBytes);
  const auto attention = device_->open_attention(bytes_of(kFolds, 4 * kFolds), kOutbox);
  ASSERT_TRUE(attention) << attention.error().message;
  ASSERT_EQ(*(*attention)->begin(kShape, folds(), 0), kFolds);
  const auto there = (*attention)->finish();
  ASSERT_TRUE(there) << there.error().message;
  const std::size_t states = kFolds * kShape.heads;
  const auto copied = [&](const DeviceAttention::States& from) {
    std::vector<float> all(from.max, from.max + states);
    all.insert(all.end(), from.sum, from.sum + states);
    all.insert(all.end(), from.acc, from.acc + states * kShape.value_dim);
    return all;
  };
  const std::vector<float> wanted = copied(*there);

  const std::span<std::byte> outbox = (*attention)->outbox();
  ASSERT_EQ(outbox.size(), kOutbox);
  std::size_t sent = 0;
  std::vector<std::vector<BlockView>> packed(kFolds);
  std::vector<HeadFold> sent_folds(folds().begin(), folds().end());
  for (std::size_t i = 0; i < kFolds; ++i) {
    const std::size_t first = sent;
    for (const BlockView& block : folds()[i].fold.blocks)
      for (int row = 0; row < kBlockRows; ++row) {
        if ((block.rows >> row & 1) == 0) continue;
        std::memcpy(outbox.data() + sent, rows_.data() + (block.key - there_) + row * kRowBytes,
                    kRowBytes);
        sent += kRowBytes;
      }
    for (std::size_t at = first; at < sent; at += kBlockRows * kRowBytes) {
      const auto rows =
          static_cast<int>(std::min<std::size_t>(kBlockRows, (sent - at) / kRowBytes));
      const std::byte* const key = outbox.data() + at;
      packed[i].push_back({key, key + kShape.key_dim * sizeof(f16), first_rows(rows)});
    }
    sent_folds[i].fold.blocks = packed[i];
    sent = round_up(sent, 64);
  }
  ASSERT_TRUE(device_->write(there_, std::vector<std::byte>(rows_.size())));  // no longer there
  ASSERT_EQ(*(*attention)->begin(kShape, sent_folds, sent), kFolds);
  const auto of_sent = (*attention)->finish();
  ASSERT_TRUE(of_sent) << of_sent.error().message;
  EXPECT_EQ(copied(*of_sent), wanted);
}

TEST(DeviceAttends, FormatsThatItsKernelsRead) {
  if (const auto device = open_device(0); !device) GTEST_SKIP() << device.error().message;
  const auto attends = [](RowFormat key, RowFormat value, std::uint32_t dim) {
    Fold fold;
    fold.key_format = key;
    fold.value_format = value;
    return device_attends({4, dim, dim}, fold).has_value();
  };
  EXPECT_TRUE(attends(RowFormat::f16, RowFormat::int8, 128));
  EXPECT_TRUE(attends(RowFormat::int8, RowFormat::f16, 256));
  EXPECT_TRUE(attends(RowFormat::q8_0, RowFormat::q8_0, 96));
  EXPECT_FALSE(attends(RowFormat::f16, RowFormat::q4_0, 128));
  EXPECT_FALSE(attends(RowFormat::bf16, RowFormat::f16, 128));
  EXPECT_FALSE(attends(RowFormat::lowrank, RowFormat::f16, 128));
  EXPECT_FALSE(attends(RowFormat::f16, RowFormat::f16, 512));
}

}  // namespace
}  // namespace thermocline
