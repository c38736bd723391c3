// Reads that are on their way before they are asked for: they are what was asked for, or forgotten.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/support/stored_rows.h"
#include "tiers/io/sink.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint32_t kHeads = 2;

// A layer of 512 bytes a row and one of 96, so of 32 and of 6 pages a fold.
PageTableOptions two_layers(std::uint32_t cached) {
  const auto layout = [](std::uint32_t key_dim, std::uint32_t value_dim) {
    return RowLayout{RowFormat::f16, RowFormat::f16, key_dim * 2, value_dim * 2};
  };
  PageTableOptions options;
  options.layers = {{layout(128, 128), kHeads, cached, 0}, {layout(16, 32), kHeads, cached, 0}};
  options.stores.bytes = {0, 0, 64 * kMiB};
  options.read_cost = ReadCost();
  return options;
}

// Both layers' segments, and lists of all of their rows.
class ExpectedRead : public ::testing::Test {
 protected:
  void open(const PageTableOptions& options, FaultPlan plan = {}) {
    stored_ = std::make_unique<StoredRows>(options, 64 * kMiB, plan);
    fill();
  }
  void fill() {
    for (std::uint32_t layer = 0; layer < 2; ++layer)
      for (const std::uint32_t rows : {1000u, 70u, 2600u, 64u}) store(layer, rows);
    reader_ = std::make_unique<Reader>(stored_->table.get());
  }
  void TearDown() override {
    reader_.reset();
    for (auto& of_layer : segments_) of_layer.clear();
  }
  void store(std::uint32_t layer, std::uint32_t rows) {
    auto kept = stored_->store(random_, layer, rows, Tier::disk);
    ASSERT_TRUE(kept) << kept.error().message;
    segments_[layer].push_back(std::move(*kept));
  }
  std::vector<Wanted> all_of(std::uint32_t layer) const {
    std::vector<Wanted> wanted;
    for (std::uint32_t head = 0; head < kHeads; ++head)
      wanted.push_back(whole(segments_[layer], head));
    return wanted;
  }
  Result<std::vector<ListRead>> read(std::uint32_t layer, const std::function<void()>& asked = {}) {
    return read_all(reader_.get(), layer, all_of(layer), FoldOrder::any, asked);
  }
  void expect(std::uint32_t layer) {
    // Lists need not outlive the call.
    const std::vector<Wanted> next = all_of(layer);
    expect_all(reader_.get(), layer, next, FoldOrder::any);
  }
  void check(std::uint32_t layer, const Result<std::vector<ListRead>>& read) const {
    ASSERT_TRUE(read) << read.error().message;
    const std::vector<Wanted> wanted = all_of(layer);
    for (std::size_t i = 0; i < wanted.size(); ++i)
      ASSERT_EQ((*read)[i], expected(wanted[i])) << "layer " << layer << ", list " << i;
  }
  const TierCounters& counters() const { return stored_->table->counters(); }
  // What one reading of a layer adds to the counters.
  TierCounters cost_of(std::uint32_t layer) {
    const TierCounters before = counters();
    check(layer, read(layer));
    return less(counters(), before);
  }
  static TierCounters less(TierCounters after, const TierCounters& before) {
    after.host_bytes_read -= before.host_bytes_read;
    after.disk_bytes_read -= before.disk_bytes_read;
    after.disk_reads -= before.disk_reads;
    after.row_cache_hits -= before.row_cache_hits;
    after.row_cache_misses -= before.row_cache_misses;
    after.pages_verified -= before.pages_verified;
    after.pages_read_again -= before.pages_read_again;
    return after;
  }
  static void expect_same(const TierCounters& a, const TierCounters& b) {
    EXPECT_EQ(a.host_bytes_read, b.host_bytes_read);
    EXPECT_EQ(a.disk_bytes_read, b.disk_bytes_read);
    EXPECT_EQ(a.disk_reads, b.disk_reads);
    EXPECT_EQ(a.row_cache_hits, b.row_cache_hits);
    EXPECT_EQ(a.row_cache_misses, b.row_cache_misses);
    EXPECT_EQ(a.pages_verified, b.pages_verified);
  }

  std::mt19937 random_{17};
  std::unique_ptr<StoredRows> stored_;
  std::vector<Stored> segments_[2];
  std::unique_ptr<Reader> reader_;
};

TEST_F(ExpectedRead, IsTakenOverAndCountedWhenItIsAskedFor) {
  for (const std::uint32_t cached : {0u, 900u}) {
    SCOPED_TRACE(std::to_string(cached) + " rows cached");
    FaultPlan plan;
    plan.reorder = true;
    TearDown();
    open(two_layers(cached), plan);
    const TierCounters first = cost_of(0), second = cost_of(1);
    for (int round = 0; round < 3; ++round) {
      TierCounters before = counters();
      check(0, read(0, [&] { expect(1); }));
      expect_same(less(counters(), before), first);
      reader_->rest();
      EXPECT_EQ(stored_->faults().in_flight(), 0u);

      // The layer fits the staging memory: it has been read already.
      const std::uint64_t reads = stored_->faults().counts().reads;
      before = counters();
      check(1, read(1, [&] { expect(0); }));
      const TierCounters asked = less(counters(), before);
      expect_same(asked, second);
      EXPECT_GT(stored_->faults().counts().reads, reads);  // of layer 0 alone
      const std::uint64_t early = stored_->faults().counts().reads - reads;
      check(0, read(0));
      EXPECT_EQ(stored_->faults().counts().reads - reads, first.disk_reads);
      EXPECT_LE(early, first.disk_reads);
    }
  }
}

TEST_F(ExpectedRead, IsForgottenWhenSomethingElseIsAskedFor) {
  open(two_layers(300));
  const TierCounters first = cost_of(0), second = cost_of(1);
  check(0, read(0, [&] { expect(1); }));
  TierCounters before = counters();
  check(0, read(0));  // another layer
  expect_same(less(counters(), before), first);

  check(0, read(0, [&] { expect(1); }));
  const Wanted one[] = {whole(segments_[1], 1)};  // fewer lists
  const auto got = read_all(reader_.get(), 1, one, FoldOrder::any);
  ASSERT_TRUE(got);
  EXPECT_EQ((*got)[0], expected(one[0]));

  check(0, read(0, [&] { expect(1); }));
  before = counters();
  check(1, read_all(reader_.get(), 1, all_of(1), FoldOrder::in_list));  // another order
  expect_same(less(counters(), before), second);
}

// A segment that goes gives its place in the file, and its number, to the next one.
TEST_F(ExpectedRead, IsForgottenWhenSegmentsComeAndGo) {
  FaultPlan plan;
  plan.reorder = true;
  open(two_layers(300), plan);
  for (int round = 0; round < 8; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    check(0, read(0, [&] { expect(1); }));
    if (round % 2) reader_->rest();
    const std::uint32_t rows = segments_[1].back().segment->rows;
    segments_[1].pop_back();
    if (round % 4 < 2) store(1, rows);
    check(1, read(1));
    if (round % 4 >= 2) store(1, rows);
    EXPECT_EQ(counters().pages_read_again, 0u);
  }
}

TEST_F(ExpectedRead, PassesThroughStagingMemoryOfAnySize) {
  for (const std::uint64_t pages : {33u, 40u, 67u, 100u, 333u, 2000u}) {
    SCOPED_TRACE(std::to_string(pages) + " pages of staging");
    PageTableOptions options = two_layers(pages % 2 ? 200 : 0);
    options.staging_bytes = pages * kPageBytes;
    FaultPlan plan;
    plan.reorder = true;
    plan.with(Fault::delay, 0.05);
    plan.delay = std::chrono::microseconds(50);
    TearDown();
    open(options, plan);
    const TierCounters cost[] = {cost_of(0), cost_of(1)};
    for (int round = 0; round < 12; ++round) {
      const std::uint32_t layer = random_() % 2, next = random_() % 2;
      const TierCounters before = counters();
      check(layer, read(layer, [&] { expect(next); }));
      const TierCounters asked = less(counters(), before);
      EXPECT_EQ(asked.disk_bytes_read, cost[layer].disk_bytes_read);
      EXPECT_EQ(asked.row_cache_hits, cost[layer].row_cache_hits);
      EXPECT_EQ(asked.row_cache_misses, cost[layer].row_cache_misses);
    }
  }
}

TEST_F(ExpectedRead, FaultsAreMadeGoodWhereItIsAskedFor) {
  for (const Fault fault : {Fault::io_error, Fault::again, Fault::short_read, Fault::delay,
                            Fault::bit_flip, Fault::misdirected, Fault::stale}) {
    SCOPED_TRACE("fault " + std::to_string(static_cast<int>(fault)));
    TearDown();
    stored_ = std::make_unique<StoredRows>(two_layers(0), 64 * kMiB);
    for (std::uint32_t layer = 0; layer < 2; ++layer)  // older content of the same pages
      for (const std::uint32_t rows : {1000u, 70u, 2600u, 64u}) store(layer, rows);
    for (auto& of_layer : segments_) of_layer.clear();
    fill();
    const std::uint64_t reads = cost_of(0).disk_reads;
    for (const bool stays : {false, true})
      for (std::uint64_t nth = 0; nth < 4; ++nth) {
        FaultPlan plan;
        plan.strike = {fault, reads + nth, stays};  // not a read of layer 0
        plan.reorder = nth % 2;
        stored_->faults().set_plan(plan);
        check(0, read(0, [&] { expect(1); }));
        reader_->rest();
        EXPECT_GT(stored_->faults().counts()[fault], 0u);
        const auto second = read(1);
        if (stays && fault != Fault::delay) {
          ASSERT_FALSE(second);
          EXPECT_NE(second.error().message.find("twice"), std::string::npos)
              << second.error().message;
        } else {
          check(1, second);
        }
        stored_->faults().set_plan({});
        check(1, read(1));
      }
  }
}

// Folds that are read as one are read apart when that fails, and each is whole when it is given.
TEST_F(ExpectedRead, FoldsThatAreReadAsOneMayFailAsOne) {
  open(two_layers(0));
  const TierCounters cost = cost_of(1);
  EXPECT_LT(cost.disk_reads * 3, cost.disk_bytes_read / (6 * kPageBytes));
  for (unsigned seed = 1; seed <= 40; ++seed) {
    FaultPlan plan;
    plan.seed = seed;
    plan.reorder = true;
    plan.delay = std::chrono::microseconds(200);
    plan.strike = {Fault::io_error, seed % cost.disk_reads};
    plan.with(Fault::delay, 0.5);
    stored_->faults().set_plan(plan);
    const TierCounters before = counters();
    check(1, read(1));
    EXPECT_EQ(stored_->faults().in_flight(), 0u);  // nothing was given before it was there
    EXPECT_EQ(less(counters(), before).disk_reads, cost.disk_reads);
    EXPECT_GT(less(counters(), before).pages_read_again, 0u);
  }
}

// Whoever waits is told; whoever asks for something else in the meantime is not disturbed by it.
TEST_F(ExpectedRead, ThatNeverComesIsAnErrorOfTheOneWhoAsksForIt) {
  PageTableOptions options = two_layers(0);
  options.disk_deadline = std::chrono::milliseconds(30);
  open(options);
  FaultPlan slow;
  slow.strike = {Fault::delay, cost_of(0).disk_reads + 1};
  slow.delay = std::chrono::milliseconds(400);
  stored_->faults().set_plan(slow);
  check(0, read(0, [&] { expect(1); }));
  reader_->rest();
  const auto late = read(1);
  ASSERT_FALSE(late);
  EXPECT_NE(late.error().message.find("within 30 ms"), std::string::npos) << late.error().message;
  while (!reader_->start(0, FoldOrder::any)) continue;
  check(1, read(1));
}

// Real files and real threads; under ASan and TSan what is given back too early is found.
TEST_F(ExpectedRead, MayBeInFlightWhenEverythingGoes) {
  for (const std::string_view backend : sink_names()) {
    auto opened = open_sink(backend, {});
    if (!opened) continue;
    SCOPED_TRACE(std::string(backend));
    TearDown();
    stored_ = std::make_unique<StoredRows>(two_layers(100), 64 * kMiB, std::move(opened->sink));
    fill();
    check(0, read(0, [&] { expect(1); }));
    check(1, read(1, [&] { expect(0); }));
    segments_[0].clear();
    for (const std::uint32_t rows : {2600u, 900u, 64u}) store(0, rows);
    check(0, read(0, [&] { expect(1); }));
    TearDown();
    stored_.reset();
  }
}

}  // namespace
}  // namespace thermocline
