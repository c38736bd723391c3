#include "tiers/io/read_cost.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <thread>
#include <vector>

#include "kernels/base/buffer.h"
#include "tests/support/fault_sink.h"
#include "tests/support/stored_rows.h"
#include "tiers/io/fifo.h"

namespace thermocline {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr std::size_t kMiB = std::size_t{1} << 20;

ReadCost cost_of(double read_us, double bytes_per_us) {
  ReadCost cost;
  cost.read_us = read_us;
  cost.bytes_per_us = bytes_per_us;
  return cost;
}

// A disk that serves one transfer after the other, each for as long as `cost` says.
class TimedSink final : public Sink {
 public:
  explicit TimedSink(ReadCost cost) : cost_(cost) {}
  std::string_view name() const override { return "timed"; }
  Status submit(std::span<const Transfer> transfers) override {
    idle_ = std::max(idle_, Clock::now());
    for (const Transfer& transfer : transfers) {
      const double us =
          cost_.read_us + static_cast<double>(transfer.bytes.size()) / cost_.bytes_per_us;
      idle_ += std::chrono::duration_cast<Clock::duration>(
          std::chrono::duration<double, std::micro>(us));
      queue_.push({{transfer.tag, 0}, idle_});
      reads += transfer.kind == Transfer::Kind::read;
      at_once = std::max(at_once, queue_.size());
    }
    return {};
  }
  Result<std::size_t> poll(std::span<Completion> out, Deadline deadline) override {
    std::size_t count = 0;
    while (count < out.size() && in_flight() > 0) {
      if (!waiting_) next_ = queue_.pop(), waiting_ = true;
      if (count > 0 && next_.at > Clock::now()) break;
      if (next_.at > deadline) {
        std::this_thread::sleep_until(deadline);
        return count;
      }
      std::this_thread::sleep_until(next_.at);
      out[count++] = next_.completion;
      waiting_ = false;
    }
    return count;
  }
  std::size_t in_flight() const override { return queue_.size() + waiting_; }

  std::size_t reads = 0, at_once = 0;

 private:
  struct Later {
    Completion completion;
    Deadline at;
  };
  ReadCost cost_;
  Deadline idle_{};
  Fifo<Later> queue_;
  Later next_;
  bool waiting_ = false;
};

TEST(ReadCost, TheGapIsWhatAReadIsWorth) {
  EXPECT_EQ(ReadCost().gap_bytes(), 9 * kPageBytes);
  EXPECT_EQ(cost_of(10, 4096).gap_bytes(), 10 * kPageBytes);
  EXPECT_EQ(cost_of(2, 1000).gap_bytes(), 0u);
  EXPECT_EQ(cost_of(1e9, 1e9).gap_bytes(), 32 * kPageBytes);
  EXPECT_EQ(cost_of(-5, 0).gap_bytes(), 0u);
  const ReadCost cut = cost_of(-5, 1e9).clamped();
  EXPECT_EQ(cut.read_us, 1);
  EXPECT_EQ(cut.bytes_per_us, 20000);
}

TEST(ReadCost, IsFoundOnADiskThatKeepsTime) {
  auto memory = Buffer::create(kMiB);
  for (const ReadCost& right : {cost_of(50, 1000), cost_of(20, 4000), cost_of(200, 2000)}) {
    // Other processes may take time from either size: then it is done again.
    std::optional<ReadCost> found;
    const auto near = [&] {
      return found && std::abs(found->read_us - right.read_us) < 0.3 * right.read_us &&
             std::abs(found->bytes_per_us - right.bytes_per_us) < 0.3 * right.bytes_per_us;
    };
    for (int attempt = 0; attempt < 40 && !near(); ++attempt) {
      TimedSink disk(right);
      found = measure_read_cost(&disk, 1, 0, memory->bytes(), Clock::now() + 10s);
      EXPECT_EQ(disk.in_flight(), 0u);
      EXPECT_LE(disk.reads, 3u * 3 * 16);
      EXPECT_GE(disk.at_once, 16u);  // a read alone costs more
    }
    ASSERT_TRUE(found);
    EXPECT_TRUE(found->measured);
    EXPECT_TRUE(near()) << found->read_us << " us for " << right.read_us << ", "
                        << found->bytes_per_us << " bytes/us for " << right.bytes_per_us;
  }
}

TEST(ReadCost, ASlowDiskIsLeftAloneAtTheDeadline) {
  auto memory = Buffer::create(kMiB);
  TimedSink disk(cost_of(20'000, 100));
  const auto start = Clock::now();
  EXPECT_FALSE(measure_read_cost(&disk, 1, 0, memory->bytes(), start + 30ms));
  EXPECT_LT(Clock::now() - start, 2s);
  EXPECT_GT(disk.in_flight(), 0u);
}

TEST(ReadCost, AFailureOrALittlePieceMeasuresNothing) {
  auto memory = Buffer::create(kMiB);
  for (const std::uint64_t nth : {0u, 5u, 20u, 60u, 100u}) {
    FaultPlan plan;
    plan.strike = {Fault::io_error, nth};
    FaultSink disk(plan);
    EXPECT_FALSE(measure_read_cost(&disk, 1, 0, memory->bytes(), Clock::now() + 10s)) << nth;
    EXPECT_EQ(disk.in_flight(), 0u);
  }
  FaultSink disk(FaultPlan{});
  EXPECT_FALSE(measure_read_cost(&disk, 1, 0, memory->bytes().first(kMiB / 4), Clock::now() + 10s));
  EXPECT_EQ(disk.counts().writes + disk.counts().reads, 0u);
  EXPECT_TRUE(measure_read_cost(&disk, 1, 0, memory->bytes(), Clock::now() + 10s));
}

PageTableOptions options_of(std::optional<ReadCost> cost) {
  PageTableOptions options;
  options.layers = {{{RowFormat::f16, RowFormat::f16, 128, 128}, 1, 0, 8192}};
  options.stores.bytes = {0, 0, 8 * kMiB};
  options.stores.directory = ::testing::TempDir() + "thermocline-cost";
  options.read_cost = cost;
  return options;
}

// Reads every 48th row, 3 pages apart, for costs between which everything else is the same.
TEST(ReadCost, DecidesWhatIsReadAndNotWhatIsAnswered) {
  std::vector<std::vector<ListRead>> answers;
  std::vector<std::uint64_t> reads, bytes;
  for (const ReadCost& cost : {cost_of(1, 20), ReadCost(), cost_of(1000, 20000)}) {
    std::mt19937 random(5);
    StoredRows stored(options_of(cost), 64 * kMiB);
    const auto kept = stored.store(random, 0, 8192, Tier::disk);
    ASSERT_TRUE(kept);
    Wanted wanted = whole(*kept, 0);
    wanted.list.reads[0] = {.run = 0};
    for (std::uint32_t row = 0; row < 8192; row += 48) {
      if (wanted.list.picks.empty() || wanted.list.picks.back().block != row / 64)
        wanted.list.picks.push_back({row / 64, 0});
      wanted.list.picks.back().rows |= RowSet{1} << row % 64;
    }
    wanted.list.reads[0].last = static_cast<std::uint32_t>(wanted.list.picks.size());
    Reader reader(stored.table.get());
    const auto read = read_all(&reader, 0, {&wanted, 1}, FoldOrder::any);
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_EQ((*read)[0], expected(wanted));
    answers.push_back(*read);
    reads.push_back(stored.table->counters().disk_reads);
    bytes.push_back(stored.table->counters().disk_bytes_read);
  }
  EXPECT_EQ(answers[0], answers[1]);
  EXPECT_EQ(answers[0], answers[2]);
  EXPECT_EQ(reads[0], 171u);  // each alone
  EXPECT_EQ(bytes[0], 171u * kPageBytes);
  EXPECT_LE(reads[1], 10u);  // as long as a read may be: 64 pages
  EXPECT_EQ(reads[1], reads[2]);
  EXPECT_GT(bytes[1], 2 * bytes[0]);
}

TEST(ReadCost, IsMeasuredWhenATableIsMadeAndLeavesNothing) {
  Budget budget({0, 64 * kMiB, 8 * kMiB});
  for (const char* backend : {"auto", "threads"}) {
    PageTableOptions options = options_of({});
    options.io_backend = backend;
    const auto start = Clock::now();
    const auto table = PageTable::create(options, &budget);
    ASSERT_TRUE(table) << table.error().message;
    const double ms = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
    EXPECT_LT(ms, 5000);
    const ReadCost& cost = (*table)->read_cost();
    EXPECT_EQ(cost.gap_bytes(), cost.clamped().gap_bytes());
    // Measured, unless this machine has no time: then assumed.
    if (!cost.measured) {
      EXPECT_EQ(cost.gap_bytes(), ReadCost().gap_bytes());
    }
    std::printf("%s: a read costs %.1f us and %.2f GB/s%s; opened in %.1f ms\n", backend,
                cost.read_us, cost.bytes_per_us / 1000, cost.measured ? "" : " (assumed)", ms);
    // What a busy disk had not taken by the deadline is held until it has: the next test's matter.
    if (cost.measured) {
      EXPECT_EQ(budget.usage(Tier::disk).held_bytes, 0u);
    }
    EXPECT_EQ((*table)->counters().disk_bytes_written, 0u);
  }
}

// Its piece of the home may be written to at any time, so it is nobody's until it was.
TEST(ReadCost, WhatWasLeftAtTheDeadlineIsNobodysUntilItHasArrived) {
  Budget budget({0, 64 * kMiB, 8 * kMiB});
  PageTableOptions options = options_of({});
  auto stores = open_stores(options.stores);
  ASSERT_TRUE(stores);
  FaultPlan slow;
  slow.strike = {Fault::delay, 40};
  slow.delay = 400ms;
  const auto start = Clock::now();
  const auto table =
      PageTable::create(options, &budget, std::move(*stores), std::make_unique<FaultSink>(slow));
  ASSERT_TRUE(table);
  EXPECT_FALSE((*table)->read_cost().measured);
  if (Clock::now() - start < 350ms) {
    EXPECT_EQ(budget.usage(Tier::disk).held_bytes, kMiB);
  }
  Segment segment;
  segment.layout = options.layers[0].layout;
  segment.heads = 1;
  segment.rows = 64;
  const std::vector<std::byte> records(64 * 256);
  auto kept = (*table)->adopt(std::move(segment), records, Tier::disk, Purpose::rows);
  ASSERT_TRUE(kept) << kept.error().message;
  ASSERT_TRUE((*table)->written());
  EXPECT_GE(Clock::now() - start, 400ms);
  EXPECT_EQ(budget.usage(Tier::disk).held_bytes, 4 * kPageBytes);
}

}  // namespace
}  // namespace thermocline
