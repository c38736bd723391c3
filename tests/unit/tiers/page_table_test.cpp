#include "tiers/page_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <string>
#include <thread>

#include "tests/support/stored_rows.h"
#include "tiers/store/device_stand_in.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

RowLayout layout(std::uint32_t key_dim, std::uint32_t value_dim) {
  return {RowFormat::f16, RowFormat::f16, key_dim * 2, value_dim * 2};
}

PageTableOptions one_layer(RowLayout rows, std::uint32_t heads, std::uint32_t cached,
                           std::uint64_t disk_bytes) {
  PageTableOptions options;
  options.layers = {{rows, heads, cached, 20000}};
  options.stores.bytes = {0, 0, disk_bytes};
  return options;
}

std::uint64_t held(const StoredRows& rows, Tier tier) { return rows.budget.usage(tier).held_bytes; }

TEST(PageTable, KeepsSegmentsOfEveryShape) {
  std::mt19937 random(1);
  const RowLayout layouts[] = {layout(16, 16), layout(16, 32),  layout(48, 80),
                               layout(80, 80), layout(128, 64), layout(512, 512)};
  for (const RowLayout& rows : layouts)
    for (const std::uint32_t heads : {1u, 3u, 8u})
      for (const std::uint32_t n : {1u, 2u, 63u, 64u, 65u, 257u, 1000u}) {
        SCOPED_TRACE(std::to_string(rows.bytes()) + " bytes a row, " + std::to_string(heads) +
                     " heads, " + std::to_string(n) + " rows");
        StoredRows stored(one_layer(rows, heads, n / 3, 64 * kMiB), 256 * kMiB);
        std::vector<Stored> kept;
        for (const Tier tier : kAllTiers) kept.push_back(*stored.store(random, 0, n, tier));
        for (const Tier tier : kAllTiers) {
          const Stored& there = kept[static_cast<std::size_t>(tier)];
          EXPECT_EQ(stored.table->home(*there.segment), tier);
          EXPECT_TRUE(holds(stored, there));
        }
        const Stored& host = kept[static_cast<std::size_t>(Tier::host)];
        const auto last = host.row(heads - 1, n - 1);
        EXPECT_EQ(std::memcmp(stored.table->rows_at(*host.segment, heads - 1) +
                                  std::size_t{n - 1} * rows.bytes(),
                              last.data(), last.size()),
                  0);
      }
}

TEST(PageTable, KeepsTheLongestSegments) {
  std::mt19937 random(2);
  StoredRows stored(one_layer(layout(16, 32), 2, 100, 64 * kMiB), 256 * kMiB);
  std::vector<Stored> kept;
  for (std::size_t i = 0; i < 6; ++i)
    kept.push_back(*stored.store(random, 0, kSegmentRows, kAllTiers[i % kTiers]));
  for (const Stored& s : kept) EXPECT_TRUE(holds(stored, s));
}

TEST(PageTable, GivesBackWhatASegmentTook) {
  std::mt19937 random(3);
  StoredRows stored(one_layer(layout(16, 32), 3, 50, 8 * kMiB), 32 * kMiB);
  const std::uint64_t host_before = held(stored, Tier::host);
  std::vector<Stored> kept;
  for (int i = 0; i < 1000; ++i) {
    if (kept.size() > 8 || (!kept.empty() && random() % 2)) {
      const std::size_t gone = random() % kept.size();
      if (i % 4 == 0) {
        EXPECT_TRUE(holds(stored, kept[gone])) << "at " << i;
      }
      kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(gone));
    } else {
      const Tier homes[] = {Tier::device, Tier::host, Tier::disk, Tier::disk};
      auto more = stored.store(random, 0, 1 + random() % 700, homes[random() % 4]);
      ASSERT_TRUE(more) << more.error().message;
      kept.push_back(std::move(*more));
    }
    std::uint64_t device = 0, host = host_before, disk = 0;
    for (const Stored& s : kept)
      if (stored.table->home(*s.segment) == Tier::device) {
        device += s.records.size();
      } else if (stored.table->home(*s.segment) == Tier::host) {
        host += s.records.size();
      } else {
        const auto bytes = round_up(s.segment->rows * s.segment->layout.bytes(), kPageBytes) * 3;
        disk += bytes;
        host += bytes / kPageBytes * 8;  // checksums
      }
    ASSERT_EQ(held(stored, Tier::device), device);
    ASSERT_EQ(held(stored, Tier::host), host);
    ASSERT_EQ(held(stored, Tier::disk), disk);
    stored.budget.check_conservation();
  }
  for (const Stored& s : kept) EXPECT_TRUE(holds(stored, s));
  kept.clear();
  EXPECT_EQ(held(stored, Tier::device), 0u);
  EXPECT_EQ(held(stored, Tier::host), host_before);
  EXPECT_EQ(held(stored, Tier::disk), 0u);
  // At most nine segments of 704 rows at a time, and the gaps between them.
  EXPECT_LE(stored.table->numbered_rows(0), 3u * 9 * 704);
}

TEST(PageTable, WhatFindsRowsIsReservedAsWell) {
  std::mt19937 random(11);
  PageTableOptions options = one_layer(layout(16, 16), 2, 10, 8 * kMiB);
  options.layers[0].rows = 640;
  StoredRows stored(options, 17 * kMiB);
  const auto cached = [&] {
    return stored.budget.usage(Tier::host).held[static_cast<std::size_t>(Purpose::row_cache)];
  };
  const std::uint64_t first = cached();
  EXPECT_EQ(first, 2 * (10 * 64 + RowCache::table_bytes(10, 640)));
  auto some = stored.store(random, 0, 600, Tier::disk);
  ASSERT_TRUE(some);
  EXPECT_EQ(cached(), first);  // as many as were expected
  {
    const auto more = stored.store(random, 0, 100, Tier::disk);
    ASSERT_TRUE(more);
    EXPECT_EQ(cached(), first + 2 * 128 * 4);
    EXPECT_TRUE(holds(stored, *more));
  }
  // Memory for the pages of a third and their checksums, but not for its numbers: it is refused,
  // and leaves nothing.
  const TierUsage usage = stored.budget.usage(Tier::host);
  const std::uint64_t pages = 2 * 640 * 64, room = pages + 200;
  auto full = stored.budget.reserve(Tier::host, Purpose::index, usage.free_bytes() - room);
  ASSERT_TRUE(full);
  const std::uint64_t disk = held(stored, Tier::disk);
  const auto refused = stored.store(random, 0, 640, Tier::disk);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::exhausted);
  EXPECT_EQ(held(stored, Tier::disk), disk);
  full = Result<Reservation>(Reservation());
  EXPECT_TRUE(stored.store(random, 0, 640, Tier::disk));
  EXPECT_TRUE(holds(stored, *some));
}

TEST(PageTable, RowNumbersThatWereGivenBackServeLongerSegments) {
  std::mt19937 random(4);
  StoredRows stored(one_layer(layout(16, 16), 1, 10, 8 * kMiB), 32 * kMiB);
  for (int round = 0; round < 6; ++round) {
    std::vector<Stored> kept;
    for (int i = 0; i < 10; ++i) kept.push_back(*stored.store(random, 0, 64, Tier::disk));
    std::shuffle(kept.begin(), kept.end(), random);
    kept.clear();
    const auto longer = stored.store(random, 0, 640, Tier::disk);
    ASSERT_TRUE(longer);
    EXPECT_TRUE(holds(stored, *longer));
    EXPECT_EQ(stored.table->numbered_rows(0), 640u);
  }
}

TEST(PageTable, RowsOfASegmentThatIsGoneAreNeverServedAgain) {
  std::mt19937 random(5);
  StoredRows stored(one_layer(layout(16, 32), 2, 200, 8 * kMiB), 32 * kMiB);
  for (int i = 0; i < 50; ++i) {
    const auto first = stored.store(random, 0, 200, Tier::disk);  // wholly in the row cache
    ASSERT_TRUE(first && holds(stored, *first));
  }
  const auto before = stored.table->counters();
  // In the same place, with the same row numbers, and in the slots that its forerunner left.
  const auto last = stored.store(random, 0, 200, Tier::disk);
  ASSERT_TRUE(last && holds(stored, *last));
  EXPECT_EQ(stored.table->counters().row_cache_hits - before.row_cache_hits, 2u * 200);
  EXPECT_EQ(stored.table->counters().disk_reads, before.disk_reads);
  EXPECT_EQ(stored.table->numbered_rows(0), 256u);
}

TEST(PageTable, RefusesWhatTheBudgetDoesNotHold) {
  std::mt19937 random(6);
  StoredRows stored(one_layer(layout(16, 16), 1, 0, 64 * 1024), 17 * kMiB);
  const std::uint64_t host_before = held(stored, Tier::host);
  const std::array<std::uint64_t, kTiers> room = {17 * kMiB, kMiB, 64 * 1024};
  for (const Tier tier : kAllTiers) {
    std::vector<Stored> kept;
    Result<Stored> more = stored.store(random, 0, 512, tier);
    for (; more; more = stored.store(random, 0, 512, tier)) kept.push_back(std::move(*more));
    EXPECT_EQ(kept.size(), room[static_cast<std::size_t>(tier)] / (512 * 64));
    EXPECT_EQ(more.error().code, ErrorCode::exhausted);
    EXPECT_NE(more.error().message.find(flag_of(tier)), std::string::npos) << more.error().message;
    for (const Stored& s : kept) EXPECT_TRUE(holds(stored, s));
    kept.pop_back();
    EXPECT_TRUE(stored.store(random, 0, 512, tier));
  }
  EXPECT_EQ(held(stored, Tier::device), 0u);
  EXPECT_EQ(held(stored, Tier::host), host_before);
  EXPECT_EQ(held(stored, Tier::disk), 0u);
}

TEST(PageTable, RowsOfAThirdStoreAreReadWhereTheyLieAndAreNobodyElses) {
  std::mt19937 random(21);
  StoredRows stored(one_layer(layout(16, 32), 2, 50, 8 * kMiB), 32 * kMiB);
  ASSERT_FALSE(stored.table->notes().empty());
  EXPECT_EQ(stored.table->notes().front(), DeviceStandIn::kNote);
  const std::uint64_t host_before = held(stored, Tier::host);
  const auto there = stored.store(random, 0, 700, Tier::device);
  ASSERT_TRUE(there);
  const TierUsage device = stored.budget.usage(Tier::device);
  EXPECT_EQ(device.held[static_cast<std::size_t>(Purpose::rows)], there->records.size());
  EXPECT_EQ(held(stored, Tier::host), host_before);
  EXPECT_EQ(held(stored, Tier::disk), 0u);
  EXPECT_TRUE(holds(stored, *there));
  const TierCounters& counters = stored.table->counters();
  EXPECT_EQ(counters.host_bytes_read, 0u);
  EXPECT_EQ(counters.disk_bytes_read + counters.row_cache_hits + counters.row_cache_misses, 0u);
}

TEST(PageTable, AWriteThatFailsLeavesNothingBehind) {
  std::mt19937 random(7);
  StoredRows stored(one_layer(layout(48, 48), 4, 30, 64 * kMiB), 64 * kMiB);
  const std::uint64_t host_before = held(stored, Tier::host);
  for (std::uint64_t nth = 0; nth < 6; ++nth) {
    FaultPlan plan;
    plan.strike = {Fault::io_error, nth};
    plan.error = ENOSPC;
    stored.faults().set_plan(plan);
    auto failed = stored.store(random, 0, kSegmentRows, Tier::disk);  // 6 MiB: six writes
    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().code, ErrorCode::io);
    EXPECT_NE(failed.error().message.find("No space left"), std::string::npos);
    EXPECT_EQ(held(stored, Tier::host), host_before);
    EXPECT_EQ(held(stored, Tier::disk), 0u);
    EXPECT_EQ(stored.faults().in_flight(), 0u);
    stored.faults().set_plan({});
    auto kept = stored.store(random, 0, 300, Tier::disk);
    ASSERT_TRUE(kept && holds(stored, *kept));
  }
}

// Else it could arrive after another segment's, in the same place.
TEST(PageTable, TheSpaceOfAWriteThatTookTooLongIsNobodysUntilItHasArrived) {
  using std::chrono::milliseconds;
  std::mt19937 random(12);
  PageTableOptions options = one_layer(layout(16, 32), 2, 0, 3 * 2 * 96 * 1024);
  options.disk_deadline = milliseconds(20);
  StoredRows stored(options, 64 * kMiB);
  const std::uint64_t host_before = held(stored, Tier::host), one = 2 * 96 * 1024;
  auto kept = stored.store(random, 0, 1024, Tier::disk);
  ASSERT_TRUE(kept);
  const std::uint64_t host = held(stored, Tier::host);

  FaultPlan slow;
  slow.strike = {Fault::delay, 0};
  slow.delay = milliseconds(500);
  stored.faults().set_plan(slow);
  const auto start = std::chrono::steady_clock::now();
  const auto late = stored.store(random, 0, 1024, Tier::disk);
  ASSERT_FALSE(late);
  EXPECT_NE(late.error().message.find("within 20 ms"), std::string::npos) << late.error().message;
  EXPECT_EQ(held(stored, Tier::disk), 2 * one);
  EXPECT_EQ(held(stored, Tier::host), host + one);
  const auto early = stored.store(random, 0, 1024, Tier::disk);
  if (std::chrono::steady_clock::now() - start < milliseconds(450)) {
    ASSERT_FALSE(early);
    EXPECT_NE(early.error().message.find("within 20 ms"), std::string::npos)
        << early.error().message;
    EXPECT_EQ(held(stored, Tier::disk),
              2 * one);  // where the late one may still arrive is not given
  }

  std::this_thread::sleep_until(start + milliseconds(520));
  {
    const auto next = stored.store(random, 0, 1024, Tier::disk);
    ASSERT_TRUE(next) << next.error().message;
    EXPECT_EQ(held(stored, Tier::disk), 2 * one);
    EXPECT_TRUE(holds(stored, *kept));
    EXPECT_TRUE(holds(stored, *next));
  }
  kept = Result<Stored>(Stored());
  EXPECT_EQ(held(stored, Tier::disk), 0u);
  EXPECT_EQ(held(stored, Tier::host), host_before);
}

// Segments of zeros, of 48 pages each, adopted and not yet waited for.
class SegmentsBeingWritten : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kBytes = 2 * 1024 * 96;  // of a segment
  SegmentsBeingWritten() {
    PageTableOptions options = one_layer(layout(16, 32), 2, 0, 64 * kMiB);
    options.writing_bytes = 2 * kBytes;
    stored_ = std::make_unique<StoredRows>(options, 64 * kMiB);
  }
  Result<std::shared_ptr<const Segment>> adopt() {
    Segment segment;
    segment.layout = layout(16, 32);
    segment.heads = 2;
    segment.rows = 1024;
    const std::vector<std::byte> records(kBytes);
    return stored_->table->adopt(std::move(segment), records, Tier::disk, Purpose::rows);
  }
  void next_write(Fault fault) {
    FaultPlan plan;
    plan.strike = {fault, 0};
    plan.delay = std::chrono::milliseconds(50);
    stored_->faults().set_plan(plan);
  }
  std::uint64_t sealing() const {
    return stored_->budget.usage(Tier::host).held[static_cast<std::size_t>(Purpose::sealing)];
  }
  std::unique_ptr<StoredRows> stored_;
};

TEST_F(SegmentsBeingWritten, StaysWithinItsMemory) {
  std::vector<std::shared_ptr<const Segment>> kept;
  FaultPlan slow;
  slow.with(Fault::delay, 1.0);
  slow.delay = std::chrono::milliseconds(3);
  stored_->faults().set_plan(slow);
  for (int i = 0; i < 10; ++i) {
    auto segment = adopt();
    ASSERT_TRUE(segment) << segment.error().message;
    kept.push_back(std::move(*segment));
    EXPECT_GT(stored_->faults().in_flight(), 0u);
    EXPECT_LE(sealing(), 2 * kBytes);
  }
  ASSERT_TRUE(stored_->table->written());
  EXPECT_EQ(stored_->faults().in_flight(), 0u);
  EXPECT_EQ(sealing(), 0u);
  EXPECT_EQ(stored_->table->counters().disk_bytes_written, 10 * kBytes);
}

TEST_F(SegmentsBeingWritten, IsWaitedForByWhoeverReads) {
  next_write(Fault::delay);
  const auto segment = adopt();
  ASSERT_TRUE(segment);
  const Stored zeros{*segment, std::vector<std::byte>(kBytes)};
  EXPECT_EQ(stored_->faults().in_flight(), 1u);
  EXPECT_TRUE(holds(*stored_, zeros));
  EXPECT_EQ(stored_->faults().in_flight(), 0u);  // the fake disk has it at once, a real one not
  EXPECT_EQ(stored_->table->counters().pages_read_again, 0u);
  EXPECT_TRUE(stored_->table->written());
}

TEST_F(SegmentsBeingWritten, AnErrorIsToldOnceAndNotOfWhatIsGone) {
  next_write(Fault::io_error);
  auto failed = adopt();
  ASSERT_TRUE(failed);
  const auto good = adopt();
  ASSERT_TRUE(good);
  const Status told = stored_->table->written();
  ASSERT_FALSE(told);
  EXPECT_EQ(told.error().code, ErrorCode::io);
  EXPECT_NE(told.error().message.find("writing 196608 bytes"), std::string::npos);
  EXPECT_TRUE(stored_->table->written());
  failed->reset();

  next_write(Fault::io_error);
  failed = adopt();
  ASSERT_TRUE(failed);
  failed->reset();
  EXPECT_TRUE(stored_->table->written());
  EXPECT_EQ(held(*stored_, Tier::disk), kBytes);
}

TEST_F(SegmentsBeingWritten, ThePlaceOfWhatIsGoneIsNobodysUntilItIsWritten) {
  next_write(Fault::delay);
  auto gone = adopt();
  ASSERT_TRUE(gone);
  gone->reset();
  EXPECT_EQ(held(*stored_, Tier::disk), kBytes);
  EXPECT_EQ(sealing(), kBytes);
  const auto next = adopt();
  ASSERT_TRUE(next);
  EXPECT_EQ(held(*stored_, Tier::disk), 2 * kBytes);
  EXPECT_TRUE(stored_->table->written());
  EXPECT_EQ(held(*stored_, Tier::disk), kBytes);
}

TEST(PageTable, AWriteThatWasLostIsFoundWhenItIsRead) {
  std::mt19937 random(8);
  StoredRows stored(one_layer(layout(48, 48), 1, 0, 64 * kMiB), 64 * kMiB);
  { ASSERT_TRUE(stored.store(random, 0, 3000, Tier::disk)); }  // so that something is there
  FaultPlan plan;
  plan.strike = {Fault::lost_write, 0};
  stored.faults().set_plan(plan);
  const auto lost = stored.store(random, 0, 3000, Tier::disk);
  ASSERT_TRUE(lost);
  stored.faults().set_plan({});
  Reader reader(stored.table.get());
  const Wanted wanted = whole(*lost, 0);
  const auto read = read_all(&reader, 0, {&wanted, 1}, FoldOrder::any);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, ErrorCode::corrupt);
}

TEST(PageTable, RealDisksHoldTheSame) {
  std::mt19937 random(9);
  for (const std::string_view backend : sink_names()) {
    PageTableOptions options = one_layer(layout(16, 32), 3, 40, 64 * kMiB);
    options.stores.directory = ::testing::TempDir() + "thermocline-rows";
    auto sink = open_sink(backend, SinkOptions{});
    if (!sink) {
      EXPECT_NE(backend, sink_names().back());
      std::printf("%s\n", sink.error().message.c_str());
      continue;
    }
    StoredRows stored(options, 64 * kMiB, std::move(sink->sink));
    std::vector<Stored> kept;
    for (const std::uint32_t n : {1u, 700u, 8192u, 64u, 3001u})
      kept.push_back(*stored.store(random, 0, n, Tier::disk));
    for (const Stored& s : kept) EXPECT_TRUE(holds(stored, s));
  }
}

}  // namespace
}  // namespace thermocline
