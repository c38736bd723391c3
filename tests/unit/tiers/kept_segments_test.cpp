// Segments of a session's file that come back over a disk that fails: the record that says what
// they are is read twice before that is an error, and filling the row cache is never one.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <chrono>
#include <filesystem>
#include <random>

#include "tests/support/fault_sink.h"
#include "tests/support/stored_rows.h"
#include "tiers/page_table.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint32_t kRowBytes = 256, kHeads = 2, kRows = 100;
constexpr std::chrono::milliseconds kDeadline{1000};  // which a busy machine's disk keeps

class KeptSegments : public ::testing::Test {
 protected:
  KeptSegments() {
    std::string pattern = ::testing::TempDir() + "kept-XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    Budget budget({0, 64 * kMiB, 64 * kMiB});
    const auto table = open(&budget);
    Segment segment;
    segment.layout = {RowFormat::f16, RowFormat::f16, kRowBytes / 2, kRowBytes / 2};
    segment.heads = kHeads;
    segment.rows = kRows;
    stored_.records.resize(kHeads * kRows * kRowBytes);
    std::mt19937 random(3);
    for (std::byte& one : stored_.records) one = static_cast<std::byte>(random());
    const auto adopted = table->adopt(segment, stored_.records, Tier::disk, Purpose::rows);
    EXPECT_TRUE(adopted);
    EXPECT_TRUE(table->keep(**adopted, {}));
    record_ = table->record_of(**adopted);
    const Segment* one = adopted->get();
    EXPECT_TRUE(table->publish(std::as_bytes(std::span("text", 4)), {&one, 1}));
  }
  ~KeptSegments() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<PageTable> open(Budget* budget, FaultSink** faults = nullptr) const {
    PageTableOptions options;
    options.layers = {{{RowFormat::f16, RowFormat::f16, kRowBytes / 2, kRowBytes / 2},
                       kHeads,
                       kRows,
                       kRows}};
    options.stores.bytes = {0, 64 * kMiB, 64 * kMiB};
    options.stores.session = folder_ + "/s.tls";
    options.read_cost = ReadCost{};
    options.disk_deadline = kDeadline;
    auto stores = open_stores(options.stores);
    auto disk = open_sink("auto", SinkOptions{});
    EXPECT_TRUE(stores && disk);
    auto sink = std::make_unique<FaultSink>(std::move(disk->sink), FaultPlan{});
    if (faults) *faults = sink.get();
    auto table = PageTable::create(options, budget, std::move(*stores), std::move(sink));
    EXPECT_TRUE(table);
    return std::move(*table);
  }
  void expect_whole(PageTable* table, const std::shared_ptr<const Segment>& segment) const {
    const Stored stored{segment, stored_.records};
    Reader reader(table);
    for (std::uint32_t head = 0; head < kHeads; ++head) {
      const Wanted wanted = whole(stored, head);
      const auto read = read_all(&reader, 0, {&wanted, 1}, FoldOrder::any);
      ASSERT_TRUE(read) << read.error().message;
      EXPECT_EQ((*read)[0], expected(wanted));
    }
  }

  std::string folder_;
  Stored stored_;
  PageTable::Record record_;
};

TEST_F(KeptSegments, ARecordIsReadOnceMore) {
  for (const Fault fault : {Fault::io_error, Fault::bit_flip, Fault::short_read}) {
    Budget budget({0, 64 * kMiB, 64 * kMiB});
    FaultSink* faults = nullptr;
    const auto table = open(&budget, &faults);
    FaultPlan plan;
    plan.strike = FaultPlan::Strike{fault};
    faults->set_plan(plan);
    const auto restored = table->restore(record_);
    ASSERT_TRUE(restored) << restored.error().message;
    EXPECT_EQ(faults->counts()[fault], 1u);
    EXPECT_GT(table->counters().pages_read_again, 0u);
    expect_whole(table.get(), restored->segment);
  }
}

TEST_F(KeptSegments, FillingTheRowCacheIsNoConditionOfAResume) {
  for (const Fault fault : {Fault::io_error, Fault::bit_flip}) {
    Budget budget({0, 64 * kMiB, 64 * kMiB});
    FaultSink* faults = nullptr;
    const auto table = open(&budget, &faults);
    FaultPlan plan;
    plan.strike = FaultPlan::Strike{fault, 1};  // after the record
    faults->set_plan(plan);
    const auto restored = table->restore(record_);
    ASSERT_TRUE(restored) << restored.error().message;
    EXPECT_EQ(faults->counts()[fault], 1u);
    expect_whole(table.get(), restored->segment);
  }
}

// Its memory may be written to as long as the disk has not answered.
TEST_F(KeptSegments, AReadThatIsGivenUpKeepsItsMemoryUntilItEnds) {
  Budget budget({0, 64 * kMiB, 64 * kMiB});
  FaultSink* faults = nullptr;
  const auto table = open(&budget, &faults);
  FaultPlan plan;
  plan.strike = FaultPlan::Strike{Fault::delay, 1};
  plan.delay = kDeadline + std::chrono::milliseconds(300);
  faults->set_plan(plan);
  const auto restored = table->restore(record_);
  ASSERT_TRUE(restored) << restored.error().message;
  ASSERT_EQ(faults->in_flight(), 1u);
  const auto sealing = [&] {
    return budget.usage(Tier::host).held[static_cast<std::size_t>(Purpose::sealing)];
  };
  EXPECT_EQ(sealing(), round_up(std::uint64_t{kRows} * kRowBytes, kPageBytes));
  expect_whole(table.get(), restored->segment);
  EXPECT_EQ(faults->in_flight(), 0u);
  EXPECT_EQ(sealing(), 0u);
}

}  // namespace
}  // namespace thermocline
