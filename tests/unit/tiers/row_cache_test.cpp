#include "tiers/row_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <optional>
#include <random>
#include <set>

namespace thermocline {
namespace {

// What a row cache promises, in the plainest words: rows from the most to the least recently used,
// and which of them were touched in this step.
class Model {
 public:
  explicit Model(std::size_t capacity) : capacity_(capacity) {}

  void begin_step() { touched_.clear(); }
  bool find(std::uint32_t row) {
    const auto at = std::find(rows_.begin(), rows_.end(), row);
    if (at == rows_.end()) return false;
    rows_.splice(rows_.begin(), rows_, at);
    touched_.insert(row);
    return true;
  }
  // Whether the row was taken.
  bool insert(std::uint32_t row) {
    if (std::find(rows_.begin(), rows_.end(), row) != rows_.end()) return false;
    if (rows_.size() == capacity_) {
      if (capacity_ == 0 || touched_.contains(rows_.back())) return false;
      rows_.pop_back();
    }
    rows_.push_front(row);
    touched_.insert(row);
    return true;
  }
  void forget(std::uint32_t first, std::uint32_t count) {
    const auto gone = [&](std::uint32_t row) { return row >= first && row - first < count; };
    rows_.remove_if(gone);
    std::erase_if(touched_, gone);
  }
  bool full() const { return rows_.size() == capacity_; }

 private:
  std::size_t capacity_;
  std::list<std::uint32_t> rows_;
  std::set<std::uint32_t> touched_;
};

// A cache whose slots hold the number of their row and a version, so that a wrong slot shows.
class Slots {
 public:
  Slots(std::uint32_t capacity, std::uint32_t rows, std::uint32_t row_bytes = 48)
      : bytes_(std::size_t{capacity} * row_bytes),
        row_bytes_(row_bytes),
        version_(rows),
        cache(bytes_.data(), capacity, row_bytes) {
    cache.grow(rows);
  }
  bool insert(std::uint32_t row) {
    std::byte* slot = cache.insert(row);
    if (!slot) return false;
    EXPECT_GE(slot, bytes_.data());
    EXPECT_LE(slot + row_bytes_, bytes_.data() + bytes_.size());
    EXPECT_EQ(static_cast<std::size_t>(slot - bytes_.data()) % row_bytes_, 0u);
    ++version_[row];
    const std::uint32_t content[2] = {row, version_[row]};
    for (std::uint32_t at = 0; at < row_bytes_; at += sizeof content)
      std::memcpy(slot + at, content, sizeof content);
    return true;
  }
  bool find(std::uint32_t row) {
    const std::byte* slot = cache.find(row);
    if (!slot) return false;
    const std::uint32_t content[2] = {row, version_[row]};
    for (std::uint32_t at = 0; at < row_bytes_; at += sizeof content)
      EXPECT_EQ(std::memcmp(slot + at, content, sizeof content), 0) << "row " << row;
    return true;
  }

 private:
  std::vector<std::byte> bytes_;
  std::uint32_t row_bytes_;
  std::vector<std::uint32_t> version_;

 public:
  RowCache cache;
};

TEST(RowCache, DoesWhatAPlainModelDoes) {
  for (unsigned seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const auto below = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
    const std::uint32_t capacities[] = {0, 1, 2, 3, 7, 64, 200};
    const std::uint32_t capacity = capacities[seed % 7], rows = 1 + below(300);
    Slots slots(capacity, rows);
    Model model(capacity);
    for (int i = 0; i < 3000; ++i) {
      const std::uint32_t row = below(rows);
      switch (below(16)) {
        case 0:
          slots.cache.begin_step();
          model.begin_step();
          break;
        case 1: {
          const std::uint32_t count = below(std::min<std::uint32_t>(rows - row, 40) + 1);
          slots.cache.forget(row, count);
          model.forget(row, count);
          break;
        }
        case 2:
        case 3:
        case 4:
        case 5:
        case 6:
        case 7:
          ASSERT_EQ(slots.insert(row), model.insert(row)) << "operation " << i << ", row " << row;
          break;
        default:
          ASSERT_EQ(slots.find(row), model.find(row)) << "operation " << i << ", row " << row;
      }
      ASSERT_EQ(slots.cache.full(), model.full()) << "operation " << i;
    }
  }
}

TEST(RowCache, WithoutSlotsHoldsNothing) {
  Slots slots(0, 10);
  EXPECT_TRUE(slots.cache.full());
  EXPECT_FALSE(slots.insert(3));
  EXPECT_FALSE(slots.find(3));
  slots.cache.forget(0, 10);
  slots.cache.begin_step();
  EXPECT_FALSE(slots.insert(3));
  RowCache nothing;
  nothing.grow(10);
  EXPECT_EQ(nothing.find(9), nullptr);
  EXPECT_EQ(nothing.insert(9), nullptr);
}

TEST(RowCache, KeepsWhatTheStepTouchedWhateverElseIsAskedFor) {
  Slots slots(4, 1000);
  for (std::uint32_t row = 0; row < 4; ++row) EXPECT_TRUE(slots.insert(row));
  slots.cache.begin_step();
  EXPECT_TRUE(slots.find(0));
  EXPECT_TRUE(slots.find(2));
  for (std::uint32_t row = 100; row < 1000; ++row) EXPECT_EQ(slots.insert(row), row < 102);
  for (const std::uint32_t row : {0u, 2u, 100u, 101u}) EXPECT_TRUE(slots.find(row));
  for (const std::uint32_t row : {1u, 3u, 102u}) EXPECT_FALSE(slots.find(row));
  slots.cache.begin_step();
  EXPECT_TRUE(slots.insert(500));
  EXPECT_FALSE(slots.find(0));  // the oldest, since the others were found again after it
}

TEST(RowCache, ForgottenSlotsAreEmptyAndTakenFirst) {
  Slots slots(8, 100);
  for (std::uint32_t row = 0; row < 8; ++row) EXPECT_TRUE(slots.insert(row));
  EXPECT_TRUE(slots.cache.full());
  slots.cache.forget(2, 3);
  EXPECT_FALSE(slots.cache.full());
  // In the same step: nothing may be pushed out, and three slots are free.
  for (std::uint32_t row = 50; row < 60; ++row) EXPECT_EQ(slots.insert(row), row < 53);
  EXPECT_TRUE(slots.cache.full());
  for (std::uint32_t row = 0; row < 8; ++row) EXPECT_EQ(slots.find(row), row < 2 || row > 4);
  slots.cache.forget(0, 100);
  for (std::uint32_t row = 0; row < 100; ++row) EXPECT_FALSE(slots.find(row));
  for (std::uint32_t row = 20; row < 28; ++row) EXPECT_TRUE(slots.insert(row));
}

TEST(RowCache, GrowingKeepsTheRows) {
  Slots slots(2, 4096);
  RowCache& cache = slots.cache;
  EXPECT_TRUE(slots.insert(4095));
  cache.grow(100000);
  cache.grow(5);
  EXPECT_TRUE(slots.find(4095));
  EXPECT_EQ(cache.find(99999), nullptr);
}

}  // namespace
}  // namespace thermocline
