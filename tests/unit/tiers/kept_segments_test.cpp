// Segments of a session's file that come back over a disk that fails: the record that says what
// they are is read twice before that is an error, and filling the row cache is never one.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <random>

#include "tests/support/fault_sink.h"
#include "tests/support/stored_rows.h"
#include "tests/support/temporary_folder.h"
#include "tiers/page_table.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint32_t kRowBytes = 256, kHeads = 2, kRows = 100;
constexpr std::chrono::milliseconds kDeadline{200};

// A segment is kept and let go, and comes back in the same table. Rows and records are in memory,
// which is as quick as no disk under load is.
class KeptSegments : public ::testing::Test {
 protected:
  KeptSegments() {
    PageTableOptions options;
    options.layers = {
        {{RowFormat::f16, RowFormat::f16, kRowBytes / 2, kRowBytes / 2}, kHeads, kRows, kRows}};
    options.stores.bytes = {0, 64 * kMiB, 64 * kMiB};
    options.stores.session = folder_.path() + "/s.tls";
    options.read_cost = ReadCost{};
    options.disk_deadline = kDeadline;
    auto sink = std::make_unique<FaultSink>(FaultPlan{});
    faults_ = sink.get();
    auto stores = open_stores(options.stores);
    EXPECT_TRUE(stores);
    auto table = PageTable::create(options, &budget_, std::move(*stores), std::move(sink));
    EXPECT_TRUE(table);
    table_ = std::move(*table);
    keep_some();
  }

  void keep_some() {
    Segment segment;
    segment.layout = {RowFormat::f16, RowFormat::f16, kRowBytes / 2, kRowBytes / 2};
    segment.heads = kHeads;
    segment.rows = kRows;
    records_.resize(kHeads * kRows * kRowBytes);
    std::mt19937 random(3);
    for (std::byte& one : records_) one = static_cast<std::byte>(random());
    const auto adopted = table_->adopt(segment, records_, Tier::disk, Purpose::rows);
    ASSERT_TRUE(adopted);
    ASSERT_TRUE(table_->keep(**adopted, [](RecordWriter*) {}));
    record_ = table_->record_of(**adopted);
    const Segment* one = adopted->get();
    const auto text = [](RecordWriter* out) { out->raw(std::as_bytes(std::span("text", 4))); };
    ASSERT_TRUE(table_->publish(text, {&one, 1}));
  }
  // With the `nth` read, the record's is the first, as `fault` says.
  Result<PageTable::Restored> restore(Fault fault, std::uint64_t nth) {
    FaultPlan plan;
    plan.strike = FaultPlan::Strike{fault, nth};
    plan.delay = kDeadline * 3 / 2;
    faults_->set_plan(plan);
    struck_ = faults_->counts()[fault];
    auto restored = table_->restore(record_);
    struck_ = faults_->counts()[fault] - struck_;
    return restored;
  }
  void expect_whole(const std::shared_ptr<const Segment>& segment) const {
    const Stored stored{segment, records_};
    Reader reader(table_.get());
    for (std::uint32_t head = 0; head < kHeads; ++head) {
      const Wanted wanted = whole(stored, head);
      const auto read = read_all(&reader, 0, {&wanted, 1}, FoldOrder::any);
      ASSERT_TRUE(read) << read.error().message;
      EXPECT_EQ((*read)[0], expected(wanted));
    }
  }
  std::uint64_t sealing_bytes() const {
    return budget_.usage(Tier::host).held[static_cast<std::size_t>(Purpose::sealing)];
  }

  const test::TemporaryFolder folder_{"kept"};
  Budget budget_{{0, 64 * kMiB, 64 * kMiB}};
  FaultSink* faults_ = nullptr;
  std::unique_ptr<PageTable> table_;
  std::vector<std::byte> records_;
  PageTable::Record record_;
  std::uint64_t struck_ = 0;
};

TEST_F(KeptSegments, ARecordIsReadOnceMore) {
  for (const Fault fault : {Fault::io_error, Fault::bit_flip, Fault::short_read}) {
    const auto again = table_->counters().pages_read_again;
    const auto restored = restore(fault, 0);
    ASSERT_TRUE(restored) << restored.error().message;
    EXPECT_EQ(struck_, 1u);
    EXPECT_GT(table_->counters().pages_read_again, again);
    expect_whole(restored->segment);
  }
}

TEST_F(KeptSegments, FillingTheRowCacheIsNoConditionOfAResume) {
  for (const Fault fault : {Fault::io_error, Fault::bit_flip}) {
    const auto restored = restore(fault, 1);
    ASSERT_TRUE(restored) << restored.error().message;
    EXPECT_EQ(struck_, 1u);
    expect_whole(restored->segment);
  }
}

// Its memory may be written to as long as the disk has not answered.
TEST_F(KeptSegments, AReadThatIsGivenUpKeepsItsMemoryUntilItEnds) {
  const auto restored = restore(Fault::delay, 1);
  ASSERT_TRUE(restored) << restored.error().message;
  ASSERT_EQ(faults_->in_flight(), 1u);
  EXPECT_EQ(sealing_bytes(), round_up(std::uint64_t{kRows} * kRowBytes, kPageBytes));
  expect_whole(restored->segment);
  EXPECT_EQ(faults_->in_flight(), 0u);
  EXPECT_EQ(sealing_bytes(), 0u);
}

// A file of one that had other layers: nothing of it is taken, and all of it is still there.
TEST(KeptSegmentsOfOthers, DoNotFitATableOfOtherLayers) {
  const test::TemporaryFolder folder("others");
  Budget budget({0, 64 * kMiB, 64 * kMiB});
  const auto open = [&](std::uint32_t heads) {
    PageTableOptions options;
    options.layers = {
        {{RowFormat::f16, RowFormat::f16, kRowBytes / 2, kRowBytes / 2}, heads, 0, kRows}};
    options.stores.bytes = {0, 64 * kMiB, 64 * kMiB};
    options.stores.session = folder.path() + "/s.tls";
    options.read_cost = ReadCost{};
    auto table = PageTable::create(options, &budget);
    EXPECT_TRUE(table);
    return std::move(*table);
  };
  PageTable::Record record;
  {
    const auto table = open(kHeads);
    Segment segment;
    segment.layout = {RowFormat::f16, RowFormat::f16, kRowBytes / 2, kRowBytes / 2};
    segment.heads = kHeads;
    segment.rows = kRows;
    const std::vector<std::byte> records(std::size_t{kHeads} * kRows * kRowBytes, std::byte{5});
    const auto adopted = table->adopt(segment, records, Tier::disk, Purpose::rows);
    ASSERT_TRUE(adopted);
    ASSERT_TRUE(table->keep(**adopted, [](RecordWriter*) {}));
    record = table->record_of(**adopted);
    const Segment* one = adopted->get();
    ASSERT_TRUE(table->publish([](RecordWriter* out) { out->text("text"); }, {&one, 1}));
  }
  {
    const auto table = open(kHeads + 1);
    const std::uint64_t before = budget.usage(Tier::disk).held_bytes;
    for (int i = 0; i < 2; ++i) {
      const auto refused = table->restore(record);
      ASSERT_FALSE(refused);
      EXPECT_EQ(refused.error().code, ErrorCode::corrupt);
      EXPECT_NE(refused.error().message.find("field layout is not that of a layer 0 here"),
                std::string::npos)
          << refused.error().message;
      EXPECT_EQ(budget.usage(Tier::disk).held_bytes, before);
    }
  }
  const auto table = open(kHeads);
  PageTable::Record longer = record;
  ++longer.rows;
  const auto refused = table->restore(longer);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::corrupt);
  EXPECT_NE(refused.error().message.find("field rows is " + std::to_string(kRows) + ", and " +
                                         std::to_string(kRows + 1) + " were due"),
            std::string::npos)
      << refused.error().message;
  EXPECT_TRUE(table->restore(record));
  budget.check_conservation();
}

}  // namespace
}  // namespace thermocline
