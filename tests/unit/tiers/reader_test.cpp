#include "tiers/reader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>

#include "tests/support/memory_sink.h"
#include "tests/support/stored_rows.h"
#include "tiers/io/sink.h"

namespace thermocline {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

RowLayout layout(std::uint32_t key_dim, std::uint32_t value_dim) {
  return {RowFormat::f16, RowFormat::f16, key_dim * 2, value_dim * 2};
}

PageTableOptions one_layer(RowLayout rows, std::uint32_t heads, std::uint32_t cached) {
  PageTableOptions options;
  options.layers = {{rows, heads, cached}};
  options.stores.bytes = {0, 0, 64 * kMiB};
  return options;
}

std::vector<ListRead> expected_of(std::span<const Wanted> wanted) {
  std::vector<ListRead> lists;
  for (const Wanted& w : wanted) lists.push_back(expected(w));
  return lists;
}

// Segments of every home and length for the reads of a test.
std::vector<Stored> store_some(StoredRows& stored, std::mt19937& random) {
  std::vector<Stored> kept;
  for (const std::uint32_t rows : {1u, 64u, 130u, 777u, 1500u, 200u})
    kept.push_back(*stored.store(random, 0, rows, kAllTiers[2 - rows % 3]));
  for (const std::uint32_t rows : {100u, 1111u})
    kept.push_back(*stored.store(random, 0, rows, Tier::disk));
  return kept;
}

TEST(Reader, GivesTheSameRowsInTheSameOrderWhateverIsCached) {
  const RowLayout layouts[] = {layout(16, 16), layout(16, 32), layout(80, 48), layout(256, 256)};
  for (unsigned seed = 1; seed <= 24; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const std::uint32_t heads = 1 + seed % 8;
    const std::uint32_t cached = seed % 3 == 0 ? 0 : random() % 2000;
    FaultPlan plan;
    plan.reorder = true;
    plan.seed = seed;
    StoredRows stored(one_layer(layouts[seed % 4], heads, cached), 512 * kMiB, plan);
    const std::vector<Stored> kept = store_some(stored, random);
    Reader reader(stored.table.get());
    for (int step = 0; step < 12; ++step) {
      std::vector<Wanted> wanted;
      const std::uint32_t lists = random() % 9;
      for (std::uint32_t i = 0; i < lists; ++i) wanted.push_back(random_reads(random, kept, heads));
      const auto order = step % 2 ? FoldOrder::in_list : FoldOrder::any;
      const auto read = read_all(&reader, 0, wanted, order);
      ASSERT_TRUE(read) << read.error().message;
      ASSERT_EQ(*read, expected_of(wanted)) << "step " << step;
    }
    EXPECT_EQ(stored.table->counters().row_cache_hits > 0, cached > 0);
    EXPECT_EQ(stored.table->counters().pages_read_again, 0u);
  }
}

// A real file, and threads that write into the reader's memory.
TEST(Reader, GivesTheSameRowsThroughASinkOfThreads) {
  auto opened = open_sink("threads", {});
  ASSERT_TRUE(opened) << opened.error().message;
  PageTableOptions options = one_layer(layout(16, 32), 3, 40);
  options.staging_bytes = 40 * kPageBytes;
  StoredRows stored(options, 64 * kMiB, std::move(opened->sink));
  std::mt19937 random(5);
  const std::vector<Stored> kept = store_some(stored, random);
  Reader reader(stored.table.get());
  for (int step = 0; step < 12; ++step) {
    std::vector<Wanted> wanted;
    for (int i = 0; i < 6; ++i) wanted.push_back(random_reads(random, kept, 3));
    const auto order = step % 2 ? FoldOrder::in_list : FoldOrder::any;
    const auto read = read_all(&reader, 0, wanted, order);
    ASSERT_TRUE(read) << read.error().message;
    ASSERT_EQ(*read, expected_of(wanted)) << "step " << step;
  }
}

TEST(Reader, StagingIsARing) {
  std::mt19937 random(3);
  // A head of the longest segment has 17 pages, and a fold has any number of them: room for one
  // fold, for two and a bit...
  for (const std::uint64_t pages : {17u, 18u, 23u, 31u, 50u}) {
    SCOPED_TRACE(std::to_string(pages) + " pages of staging");
    PageTableOptions options = one_layer(layout(16, 32), 4, 30);
    options.staging_bytes = pages * kPageBytes;
    FaultPlan plan;
    plan.reorder = true;
    plan.with(Fault::delay, 0.1);
    plan.delay = std::chrono::microseconds(50);
    StoredRows stored(options, 64 * kMiB, plan);
    std::vector<Stored> kept;
    for (const std::uint32_t rows : {700u, 65u, 640u, 200u, 333u})
      kept.push_back(*stored.store(random, 0, rows, Tier::disk));
    Reader reader(stored.table.get());
    for (int round = 0; round < 25; ++round) {
      std::vector<Wanted> wanted;
      for (std::uint32_t i = 0; i < 10; ++i)
        wanted.push_back(random() % 3 ? random_reads(random, kept, 4)
                                      : whole(kept[random() % kept.size()], random() % 4));
      const auto order = round % 2 ? FoldOrder::in_list : FoldOrder::any;
      const auto read = read_all(&reader, 0, wanted, order);
      ASSERT_TRUE(read) << read.error().message;
      ASSERT_EQ(*read, expected_of(wanted));
    }
  }
}

TEST(Reader, ASingleFaultIsMadeGood) {
  std::uint64_t injected = 0;
  for (const Fault fault : {Fault::io_error, Fault::again, Fault::short_read, Fault::delay,
                            Fault::bit_flip, Fault::misdirected, Fault::stale}) {
    SCOPED_TRACE("fault " + std::to_string(static_cast<int>(fault)));
    std::mt19937 random(11);
    StoredRows stored(one_layer(layout(256, 256), 2, 0), 64 * kMiB);
    { ASSERT_TRUE(stored.store(random, 0, 2600, Tier::disk)); }  // older content of the same pages
    const auto kept = stored.store(random, 0, 2600, Tier::disk);
    ASSERT_TRUE(kept);
    const Wanted wanted[] = {whole(*kept, 0), whole(*kept, 1), whole(*kept, 0)};
    const auto right = expected_of(wanted);
    Reader reader(stored.table.get());
    for (std::uint64_t nth = 0; nth < 30; ++nth)
      for (const FoldOrder order : {FoldOrder::any, FoldOrder::in_list}) {
        const FaultCounts before = stored.faults().counts();
        const std::uint64_t again = stored.table->counters().pages_read_again;
        FaultPlan plan;
        plan.strike = {fault, nth};
        plan.seed = nth;
        plan.delay = std::chrono::microseconds(100);
        plan.reorder = nth % 2;
        stored.faults().set_plan(plan);
        const auto read = read_all(&reader, 0, wanted, order);
        ASSERT_TRUE(read) << nth << ": " << read.error().message;
        ASSERT_EQ(*read, right) << nth;
        ASSERT_EQ(stored.faults().counts()[fault], before[fault] + 1);
        EXPECT_EQ(stored.table->counters().pages_read_again > again, fault != Fault::delay);
        ++injected;
      }
  }
  EXPECT_EQ(injected, 7u * 60);
}

TEST(Reader, ManyFaultsGiveTheRowsOrAnError) {
  std::uint64_t injected = 0, failures = 0, successes = 0;
  for (unsigned seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const std::uint32_t heads = 1 + seed % 3;
    StoredRows stored(one_layer(layout(48, 32), heads, seed % 2 * 300), 256 * kMiB);
    { store_some(stored, random); }
    const std::vector<Stored> kept = store_some(stored, random);
    Reader reader(stored.table.get());
    FaultPlan plan;
    plan.seed = seed;
    plan.reorder = true;
    plan.delay = std::chrono::microseconds(30);
    for (const Fault fault : {Fault::io_error, Fault::again, Fault::short_read, Fault::delay,
                              Fault::bit_flip, Fault::misdirected, Fault::stale})
      plan.with(fault, seed % 4 ? 0.02 : 0.2);
    stored.faults().set_plan(plan);
    for (int step = 0; step < 20; ++step) {
      std::vector<Wanted> wanted;
      for (std::uint32_t i = 0; i < 5; ++i) wanted.push_back(random_reads(random, kept, heads));
      const auto read =
          read_all(&reader, 0, wanted, step % 2 ? FoldOrder::in_list : FoldOrder::any);
      if (read) {
        ++successes;
        ASSERT_EQ(*read, expected_of(wanted)) << "step " << step;
      } else {
        ++failures;
        ASSERT_TRUE(read.error().code == ErrorCode::io || read.error().code == ErrorCode::corrupt);
        ASSERT_NE(read.error().message.find("scratch file"), std::string::npos)
            << read.error().message;
        ASSERT_NE(read.error().message.find("twice"), std::string::npos) << read.error().message;
      }
    }
    for (const std::uint64_t n : stored.faults().counts().injected) injected += n;
    // What went wrong has left no trace: neither in the row cache nor in staging.
    stored.faults().set_plan({});
    for (int step = 0; step < 5; ++step) {
      std::vector<Wanted> wanted;
      for (std::uint32_t i = 0; i < 5; ++i) wanted.push_back(random_reads(random, kept, heads));
      const auto read = read_all(&reader, 0, wanted, FoldOrder::any);
      ASSERT_TRUE(read) << read.error().message;
      ASSERT_EQ(*read, expected_of(wanted)) << "afterwards, step " << step;
    }
  }
  EXPECT_GE(injected, 1000u);
  EXPECT_GE(failures, 20u);
  EXPECT_GE(successes, 200u);
  std::printf("%lu faults in reads, %lu reads whole, %lu refused\n",
              static_cast<unsigned long>(injected), static_cast<unsigned long>(successes),
              static_cast<unsigned long>(failures));
}

TEST(Reader, AFaultThatStaysIsAnErrorAndTheReaderStartsAnew) {
  struct Case {
    Fault fault;
    ErrorCode code;
  };
  for (const Case& c :
       {Case{Fault::io_error, ErrorCode::io}, Case{Fault::again, ErrorCode::io},
        Case{Fault::short_read, ErrorCode::io}, Case{Fault::bit_flip, ErrorCode::corrupt},
        Case{Fault::misdirected, ErrorCode::corrupt}, Case{Fault::stale, ErrorCode::corrupt}}) {
    SCOPED_TRACE("fault " + std::to_string(static_cast<int>(c.fault)));
    std::mt19937 random(12);
    StoredRows stored(one_layer(layout(256, 256), 1, 0), 64 * kMiB);
    { ASSERT_TRUE(stored.store(random, 0, 3000, Tier::disk)); }
    const auto kept = stored.store(random, 0, 3000, Tier::disk);
    const auto at_hand = stored.store(random, 0, 300, Tier::host);
    ASSERT_TRUE(kept && at_hand);
    const Wanted wanted[] = {whole(*kept, 0)}, in_memory[] = {whole(*at_hand, 0)};
    Reader reader(stored.table.get());
    for (std::uint64_t nth = 0; nth < 8; ++nth) {
      FaultPlan plan;
      plan.strike = {c.fault, nth, true};
      stored.faults().set_plan(plan);
      const auto read = read_all(&reader, 0, wanted, FoldOrder::any);
      ASSERT_FALSE(read);
      EXPECT_EQ(read.error().code, c.code) << read.error().message;
      EXPECT_NE(read.error().message.find("twice"), std::string::npos) << read.error().message;
      EXPECT_EQ(read.error().message.find('\n'), std::string::npos);
      stored.faults().set_plan({});
      // A start over what lies in memory submits nothing: what is in flight then was left over.
      ASSERT_TRUE(read_all(&reader, 0, in_memory, FoldOrder::any));
      EXPECT_EQ(stored.faults().in_flight(), 0u);
      const auto anew = read_all(&reader, 0, wanted, FoldOrder::in_list);
      ASSERT_TRUE(anew) << anew.error().message;
      EXPECT_EQ(*anew, expected_of(wanted));
    }
  }
}

TEST(Reader, SegmentsFormedAfterAFailedReadAreWhole) {
  std::mt19937 random(13);
  StoredRows stored(one_layer(layout(16, 32), 1, 0), 64 * kMiB);
  const auto kept = stored.store(random, 0, 8192, Tier::disk);
  ASSERT_TRUE(kept);
  const Wanted wanted[] = {whole(*kept, 0), whole(*kept, 0), whole(*kept, 0)};
  Reader reader(stored.table.get());
  FaultPlan plan;  // more reads than are polled at once, and none of them well
  plan.strike = {Fault::io_error, 0, true};
  stored.faults().set_plan(plan);
  ASSERT_FALSE(read_all(&reader, 0, wanted, FoldOrder::any));
  ASSERT_GT(stored.faults().in_flight(), 0u);
  FaultPlan slow_writes;
  slow_writes.with(Fault::delay, 1);
  stored.faults().set_plan(slow_writes);
  const auto more = stored.store(random, 0, 8192, Tier::disk);
  ASSERT_TRUE(more) << more.error().message;
  EXPECT_EQ(stored.faults().in_flight(), 0u);  // else its pages may still be on their way
  stored.faults().set_plan({});
  const Wanted both[] = {whole(*more, 0), whole(*kept, 0)};
  const auto read = read_all(&reader, 0, both, FoldOrder::any);
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(*read, expected_of(both));
}

TEST(Reader, EveryFlippedBitIsFound) {
  std::mt19937 random(14);
  StoredRows stored(one_layer(layout(48, 32), 2, 0), 64 * kMiB);
  std::vector<Stored> kept;
  for (const std::uint32_t rows : {64u, 500u, 3000u})
    kept.push_back(*stored.store(random, 0, rows, Tier::disk));
  std::vector<std::byte>& disk = stored.disk();
  Reader reader(stored.table.get());
  int found = 0;
  for (int i = 0; i < 10000; ++i) {
    const Stored& from = kept[random() % kept.size()];
    const std::uint32_t row = random() % from.segment->rows;
    Wanted wanted = whole(from, random() % 2);
    wanted.list.reads[0] = {.run = 0, .first = 0, .last = 1};
    wanted.list.picks = {{row / 64, RowSet{1} << row % 64}};
    // Where the row lies: heads follow each other from whole pages on, segments too.
    std::size_t at = 0;
    for (const Stored* s = kept.data(); s != &from; ++s)
      at += 2 * round_up(s->segment->rows * 160, kPageBytes);
    at += wanted.head * round_up(from.segment->rows * 160, kPageBytes) + row * 160;
    const std::size_t page = at / kPageBytes * kPageBytes;  // any bit of the row's first page
    const std::size_t bit = page * 8 + random() % (kPageBytes * 8);
    disk[bit / 8] ^= std::byte{1} << bit % 8;
    const ReadRequest request{wanted.head, wanted.runs, &wanted.list};
    ASSERT_TRUE(reader.start(0, FoldOrder::any));
    ASSERT_TRUE(reader.add({&request, 1}));
    const auto wave = reader.next();
    ASSERT_TRUE(wave && wave->size() == 1);
    found += !verify((*wave)[0]);
    if (i % 10 == 0) {
      const ReadyFold fold = (*wave)[0];
      const Status again = reader.read_again(fold);
      ASSERT_FALSE(again);
      EXPECT_EQ(again.error().code, ErrorCode::corrupt);
      EXPECT_NE(again.error().message.find("--kv-dir on another disk"), std::string::npos);
    }
    disk[bit / 8] ^= std::byte{1} << bit % 8;
    if (i % 100 == 0) {
      const auto read = read_all(&reader, 0, {&wanted, 1}, FoldOrder::any);
      ASSERT_TRUE(read);
      ASSERT_EQ((*read)[0], expected(wanted));
    }
  }
  EXPECT_EQ(found, 10000);
}

TEST(Reader, ADiskThatDoesNotAnswerIsAnErrorAndNotAWaitForEver) {
  std::mt19937 random(15);
  PageTableOptions options = one_layer(layout(256, 256), 1, 0);
  options.disk_deadline = milliseconds(30);
  StoredRows stored(options, 64 * kMiB);
  const auto kept = stored.store(random, 0, 3000, Tier::disk);
  ASSERT_TRUE(kept);
  const Wanted wanted[] = {whole(*kept, 0)};
  Reader reader(stored.table.get());
  FaultPlan slow;
  slow.strike = {Fault::delay, 2};
  slow.delay = milliseconds(500);
  stored.faults().set_plan(slow);
  const auto start = Clock::now();
  const auto read = read_all(&reader, 0, wanted, FoldOrder::any);
  const auto given_up = Clock::now();  // the slow one was handed over before, however long ago
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, ErrorCode::io);
  EXPECT_NE(read.error().message.find("within 30 ms"), std::string::npos) << read.error().message;
  // Its memory is not given to others while the read may still arrive there.
  if (Clock::now() - start < milliseconds(400)) {
    const auto early = read_all(&reader, 0, wanted, FoldOrder::any);
    ASSERT_FALSE(early);
    EXPECT_NE(early.error().message.find("earlier"), std::string::npos) << early.error().message;
    EXPECT_FALSE(stored.store(random, 0, 100, Tier::disk));
    EXPECT_LT(Clock::now() - start, milliseconds(450));
  }
  std::this_thread::sleep_until(given_up + milliseconds(520));
  const auto anew = read_all(&reader, 0, wanted, FoldOrder::any);
  ASSERT_TRUE(anew) << anew.error().message;
  EXPECT_EQ(*anew, expected_of(wanted));
}

// Carries transfers out late: when it is let go, or when it is destroyed, as a device does that
// was handed a request and cannot be stopped.
class HeldSink final : public Sink {
 public:
  explicit HeldSink(bool* hold) : hold_(*hold) {}
  ~HeldSink() override {
    EXPECT_FALSE(silent);  // who did not give up its transfers is left where it is
    carry_out();
  }
  std::string_view name() const override { return "held"; }
  Status submit(std::span<const Transfer> transfers) override {
    held_.insert(held_.end(), transfers.begin(), transfers.end());
    return {};
  }
  Result<std::size_t> poll(std::span<Completion> out, Deadline deadline) override {
    if (in_flight() == 0) return std::size_t{0};
    if (hold_) {
      std::this_thread::sleep_until(deadline);
      return std::size_t{0};
    }
    carry_out();
    return memory_.poll(out, deadline);
  }
  bool drain(Deadline) override { return !silent; }
  std::size_t in_flight() const override { return held_.size() + memory_.in_flight(); }
  void carry_out() {
    (void)memory_.submit(held_);
    held_.clear();
  }

  bool silent = false;  // it keeps what it has, whatever deadline there is

 private:
  bool& hold_;
  std::vector<Transfer> held_;
  MemorySink memory_;
};

TEST(Reader, MemoryOutlivesTheTransfersThatWereGivenUp) {
  std::mt19937 random(16);
  bool hold = false;
  PageTableOptions options = one_layer(layout(16, 32), 1, 0);
  options.disk_deadline = milliseconds(20);
  {
    StoredRows stored(options, 64 * kMiB, std::make_unique<HeldSink>(&hold));
    const auto kept = stored.store(random, 0, 3000, Tier::disk);
    ASSERT_TRUE(kept);
    const Wanted wanted[] = {whole(*kept, 0)};
    hold = true;
    const auto late = stored.store(random, 0, 3000, Tier::disk);
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().code, ErrorCode::io);
    hold = false;  // the write arrives now, from memory that must still be there
    Reader reader(stored.table.get());
    auto read = read_all(&reader, 0, wanted, FoldOrder::any);
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_EQ(*read, expected_of(wanted));
    hold = true;  // reads and a write are left for the end
    EXPECT_FALSE(read_all(&reader, 0, wanted, FoldOrder::any));
  }
}

// A disk that never answers keeps nobody from going, and may still come back afterwards.
TEST(Reader, WhatTheDiskDoesNotGiveBackIsLeftToIt) {
  std::mt19937 random(17);
  bool hold = false;
  PageTableOptions options = one_layer(layout(16, 32), 1, 0);
  options.disk_deadline = milliseconds(20);
  auto made = std::make_unique<HeldSink>(&hold);
  HeldSink* const sink = made.get();
  {
    StoredRows stored(options, 64 * kMiB, std::move(made));
    const auto kept = stored.store(random, 0, 3000, Tier::disk);
    ASSERT_TRUE(kept);
    const Wanted wanted[] = {whole(*kept, 0)};
    hold = true;
    EXPECT_FALSE(stored.store(random, 0, 3000, Tier::disk));  // pages that are written
    Reader reader(stored.table.get());
    EXPECT_FALSE(read_all(&reader, 0, wanted, FoldOrder::any));  // and staging
    sink->silent = true;
  }
  EXPECT_GT(sink->in_flight(), 0u);
  hold = false;
  sink->carry_out();  // from and to memory that must still be there
}

// What rows share lies in host memory wherever they are: once for a list, once for a group, and for
// each row.
TEST(Reader, CountsWhatRowsShareByWhatAListTakesOfIt) {
  std::mt19937 random(15);
  StoredRows stored(one_layer(layout(16, 16), 2, 0), 64 * kMiB);
  Segment made;
  made.layout = layout(16, 16);
  made.heads = 2;
  made.rows = 300;
  const std::vector<std::byte> records(2 * 300 * made.layout.bytes());
  const auto adopted = stored.table->adopt(std::move(made), records, Tier::disk, Purpose::rows);
  ASSERT_TRUE(adopted);
  const auto part = std::make_shared<FitBytes>();
  part->bytes = *Buffer::create(64);
  (*adopted)->fits[0].own = (*adopted)->fits[1].own = part;
  (*adopted)->fits[0].facts = {.head_bytes = 1'000'000, .group_bytes = 1000};
  (*adopted)->fits[1].facts = {.head_bytes = 2'000'000, .row_bytes = 1};
  const Stored kept{*adopted, records};
  Reader reader(stored.table.get());
  const auto cost = [&](const Wanted& wanted) {
    const std::uint64_t before = stored.table->counters().host_bytes_read;
    EXPECT_TRUE(read_all(&reader, 0, {&wanted, 1}, FoldOrder::any));
    return stored.table->counters().host_bytes_read - before;
  };
  EXPECT_EQ(cost(whole(kept, 1)), 3'010'300u);  // groups of 32 rows
  Wanted some = whole(kept, 0);
  some.list.picks = {{0, 0b111}, {2, RowSet{1} << 31 | RowSet{1} << 32}, {4, 1}};
  some.list.reads[0] = {.run = 0, .first = 0, .last = 3};
  EXPECT_EQ(cost(some), 3'004'006u);
  some.list.reads[0] = {.run = 0, .first = 1, .last = 1};
  EXPECT_EQ(cost(some), 0u);
}

// What a selector asks for wrongly is stopped, and not attended with keys that are not there.
TEST(ReaderDeathTest, ReadsThatNothingCouldScoreAreStopped) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto read_with = [](std::uint32_t key_dim, Read read) {
    std::mt19937 random(1);
    PageTableOptions options;
    options.layers = {{layout(key_dim, 32), 1, 0, 64}};
    StoredRows stored(options, 64 << 20);
    const auto kept = stored.store(random, 0, 10, Tier::host);
    const thermocline::Run run{kept->segment, kept->segment, {}, {}};
    ReadList list;
    list.picks = {{0, 3}};
    list.log_weight = {0.5f, 0.5f};
    list.reads = {read};
    const ReadRequest request{0, {&run, 1}, &list};
    Reader reader(stored.table.get());
    if (!reader.start(0, FoldOrder::any) || !reader.add({&request, 1})) std::_Exit(1);
    std::_Exit(0);
  };
  const auto lives = ::testing::ExitedWithCode(0);
  EXPECT_EXIT(read_with(32, {.last = 1, .weights_a_row = 1}), lives, "");
  EXPECT_EXIT(read_with(0, {.last = 1, .weights_a_row = 1, .scored = true}), lives, "");
  EXPECT_DEATH(read_with(0, {.last = 1, .weights_a_row = 1}), "check failed");
  EXPECT_DEATH(read_with(0, {.everything = true}), "check failed");
  EXPECT_DEATH(read_with(32, {.everything = true, .weights_a_row = 1}), "check failed");
}

}  // namespace
}  // namespace thermocline
