// The device tier's store, and rows at home there: they come back to the host as they went, and
// stay where they are when a device is to attend them.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "tests/support/stored_rows.h"
#include "tests/unit/device/each_device.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

StoreOptions only_device(const char* device) {
  StoreOptions options;
  options.device = device;
  options.bytes.front() = kMiB;
  return options;
}

class DeviceStore : public EachDevice {};

TEST_P(DeviceStore, GivesSpaceAndTakesItBack) {
  const auto stores = open_stores(only_device(GetParam()));
  ASSERT_TRUE(stores) << stores.error().message;
  Store* const store = stores->front().get();
  EXPECT_EQ(store->facts().tier, Tier::device);
  EXPECT_EQ(store->facts().reach, is_gpu() ? Reach::device : Reach::memory);
  EXPECT_EQ(store->device() != nullptr, is_gpu());
  Budget budget({kMiB, 0, 0});
  const auto held = [&] { return budget.usage(Tier::device).held_bytes; };
  {
    auto first = Slot::take(store, &budget, Purpose::rows, 1000);
    ASSERT_TRUE(first) << first.error().message;
    auto second = Slot::take(store, &budget, Purpose::rows, 3000);
    ASSERT_TRUE(second) << second.error().message;
    EXPECT_NE(first->space().address, second->space().address);
    EXPECT_EQ(held(), 4000u);
    *second = std::move(*first);
    *second = Slot();
  }
  EXPECT_EQ(held(), 0u);
  const auto refused = Slot::take(store, &budget, Purpose::rows, kMiB + 1);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("--kv-device"), std::string::npos);
}

TEST_P(DeviceStore, RefusesWhatItsMemoryCannotHold) {
  if (!is_gpu()) GTEST_SKIP() << "host memory is the plan's to refuse";
  StoreOptions options = only_device(GetParam());
  const auto stores = open_stores(options);
  ASSERT_TRUE(stores);
  const auto taken = stores->front()->take(std::uint64_t{1} << 50);
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code, ErrorCode::exhausted) << taken.error().message;
  EXPECT_NE(taken.error().message.find("lower --kv-device"), std::string::npos);
  options.planned.front() = {std::uint64_t{1} << 50, 123};
  for (const Error& refused : {open_stores(options).error(), probe_stores(options).error()}) {
    EXPECT_EQ(refused.code, ErrorCode::exhausted);
    EXPECT_NE(refused.message.find("123 positions need 1024 TiB of its memory"), std::string::npos)
        << refused.message;
  }
}
THERMOCLINE_EACH_DEVICE(DeviceStore);

TEST(DeviceNames, AreCudaAndItsNumber) {
  EXPECT_EQ(device_number("cuda"), 0u);
  EXPECT_EQ(device_number("cuda:0"), 0u);
  EXPECT_EQ(device_number("cuda:17"), 17u);
  for (const char* other : {"", "host", "none", "cud", "cuda:", "cuda:x", "cuda:1x", "cuda:-1",
                            "cuda1", "cuda:99999999999", "CUDA"})
    EXPECT_FALSE(device_number(other)) << other;
}

class DeviceHome : public EachDevice {
 protected:
  // Staging memory for two folds, so that it is used over and over.
  static PageTableOptions one_layer(std::uint32_t key_dim, std::uint32_t value_dim,
                                    std::uint32_t heads) {
    PageTableOptions options;
    const RowLayout rows = {RowFormat::f16, RowFormat::f16, key_dim * 2, value_dim * 2};
    options.layers = {{rows, heads, 50, 20000}};
    options.stores.device = GetParam();
    options.stores.bytes.back() = 64 * kMiB;
    options.staging_bytes = 2 * round_up(kFoldRows * rows.bytes(), kPageBytes);
    return options;
  }
  static ::testing::AssertionResult comes_back(StoredRows& rows, const Stored& stored) {
    const auto any = holds(rows, stored, FoldOrder::any);
    return any ? holds(rows, stored, FoldOrder::in_list) : any;
  }
};

TEST_P(DeviceHome, KeepsSegmentsOfEveryShape) {
  std::mt19937 random(1);
  for (const auto& [key_dim, value_dim] : {std::pair(16u, 16u), {48u, 80u}, {128u, 64u}})
    for (const std::uint32_t heads : {1u, 3u}) {
      StoredRows stored(one_layer(key_dim, value_dim, heads), 64 * kMiB);
      std::vector<Stored> kept;
      std::uint64_t bytes = 0;
      for (const std::uint32_t n : {1u, 2u, 63u, 64u, 65u, 257u, 1000u}) {
        kept.push_back(*stored.store(random, 0, n, Tier::device));
        bytes += kept.back().records.size();
        EXPECT_EQ(stored.table->home(*kept.back().segment), Tier::device);
        EXPECT_EQ(stored.budget.usage(Tier::device).held_bytes, bytes);
      }
      for (const Stored& one : kept) EXPECT_TRUE(comes_back(stored, one)) << one.segment->rows;
      const TierCounters& moved = stored.table->counters();
      EXPECT_EQ(moved.device_bytes_written, is_gpu() ? bytes : 0);
      EXPECT_EQ(moved.device_bytes_read, 2 * bytes);
      EXPECT_EQ(moved.device_bytes_copied, is_gpu() ? 2 * bytes : 0);
      EXPECT_EQ(moved.host_bytes_read, 0u);
    }
}

// Patterns that no other segment has, in places that others had before.
TEST_P(DeviceHome, GivesBackWhatASegmentTook) {
  std::mt19937 random(3);
  StoredRows stored(one_layer(16, 32, 3), 32 * kMiB);
  std::vector<Stored> kept;
  for (int i = 0; i < 300; ++i) {
    if (kept.size() > 8 || (!kept.empty() && random() % 2)) {
      const std::size_t gone = random() % kept.size();
      if (i % 4 == 0) {
        EXPECT_TRUE(comes_back(stored, kept[gone])) << "at " << i;
      }
      kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(gone));
    } else {
      auto more = stored.store(random, 0, 1 + random() % 700, Tier::device);
      ASSERT_TRUE(more) << more.error().message;
      kept.push_back(std::move(*more));
    }
  }
  for (const Stored& s : kept) EXPECT_TRUE(comes_back(stored, s));
  kept.clear();
  EXPECT_EQ(stored.budget.usage(Tier::device).held_bytes, 0u);
}

// Picks of all kinds, of rows on the device and beside them in memory and on a disk.
TEST_P(DeviceHome, GivesTheRowsThatAreAskedFor) {
  std::mt19937 random(5);
  PageTableOptions options = one_layer(16, 48, 2);
  options.staging_bytes = 4 * kMiB;  // a fold of scattered rows in pages takes most of it
  StoredRows stored(options, 64 * kMiB);
  std::vector<Stored> kept;
  for (const std::uint32_t n : {700u, 130u, 64u})
    for (const Tier tier : kAllTiers) kept.push_back(*stored.store(random, 0, n, tier));
  Reader reader(stored.table.get());
  for (int round = 0; round < 60; ++round) {
    std::vector<Wanted> wanted;
    for (int i = 0; i < 4; ++i) wanted.push_back(random_reads(random, kept, 2));
    const auto read = read_all(&reader, 0, wanted, round % 2 ? FoldOrder::any : FoldOrder::in_list);
    ASSERT_TRUE(read) << read.error().message;
    for (std::size_t i = 0; i < wanted.size(); ++i)
      ASSERT_EQ((*read)[i], expected(wanted[i])) << "round " << round;
  }
  // No row beside those.
  const TierCounters& moved = stored.table->counters();
  EXPECT_GT(moved.device_bytes_read, 0u);
  EXPECT_EQ(moved.device_bytes_copied, is_gpu() ? moved.device_bytes_read : 0);
}

TEST_P(DeviceHome, LeavesRowsThatStay) {
  std::mt19937 random(7);
  StoredRows stored(one_layer(32, 32, 2), 32 * kMiB);
  const Stored there = *stored.store(random, 0, 600, Tier::device);
  const Stored here = *stored.store(random, 0, 300, Tier::host);
  Reader reader(stored.table.get());
  const Stored both[] = {there, here};
  const Wanted wanted = whole(both, 1);
  const ReadRequest request{1, wanted.runs, &wanted.list};
  ASSERT_TRUE(reader.start(0, FoldOrder::any, DeviceRows::stay));
  ASSERT_TRUE(reader.add({&request, 1}));
  EXPECT_EQ(reader.folds(0), 5u);
  const auto on_device = reader.on_device();
  std::vector<std::uint32_t> ordinals;
  for (const ReadyFold& fold : on_device) ordinals.push_back(fold.ordinal);
  std::vector<std::uint32_t> in_waves;
  while (true) {
    const auto wave = reader.next();
    ASSERT_TRUE(wave);
    if (wave->empty()) break;
    for (const ReadyFold& fold : *wave) in_waves.push_back(fold.ordinal);
  }
  using Ordinals = std::vector<std::uint32_t>;
  EXPECT_EQ(ordinals, is_gpu() ? Ordinals({0, 1, 2}) : Ordinals());
  EXPECT_EQ(in_waves, is_gpu() ? Ordinals({3, 4}) : Ordinals({0, 1, 2, 3, 4}));
  EXPECT_EQ(stored.table->counters().device_bytes_copied, 0u);
  EXPECT_EQ(stored.table->counters().device_bytes_read, 600u * 128);
}
THERMOCLINE_EACH_DEVICE(DeviceHome);

}  // namespace
}  // namespace thermocline
