#include "tiers/write_behind.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <thread>
#include <utility>

#include "tests/support/fault_sink.h"
#include "tests/support/memory_sink.h"

namespace thermocline {
namespace {

using std::chrono::milliseconds;

constexpr int kFile = 3;

// A file whose places are given one after the other, and counted.
class FileStore final : public Store {
 public:
  StoreFacts facts() const override { return {Tier::disk, Reach::pages}; }
  const std::string& name() const override { return name_; }
  Result<Space> take(std::uint64_t bytes) override {
    ++taken;
    Space space{bytes, nullptr, kFile, end_};
    end_ += bytes;
    return space;
  }
  void give(const Space&) override { --taken; }
  int taken = 0;

 private:
  const std::string name_ = "disk";
  std::uint64_t end_ = 0;
};

// Segments of three pieces, the last one short.
class WriteBehindTest : public ::testing::Test {
 protected:
  static constexpr std::size_t kBytes = 2 * kPieceBytes + 8192;

  Status begin(std::uint32_t segment, const Slot& slot) {
    TL_TRY_ASSIGN(Reservation memory, budget_.reserve(Tier::host, Purpose::sealing, kBytes));
    TL_TRY_ASSIGN(Buffer pages, Buffer::create(kBytes));
    for (std::size_t i = 0; i < kBytes; ++i) pages.data()[i] = byte(segment, i);
    return writes_.begin(segment, slot.space(), std::move(pages), std::move(memory));
  }
  static std::byte byte(std::uint32_t segment, std::size_t at) {
    return static_cast<std::byte>(segment * 131 + at / 4096);
  }
  Slot slot() { return std::move(*Slot::take(&store_, &budget_, Purpose::rows, kBytes)); }
  bool is_there(std::uint32_t segment, const Slot& slot) {
    const auto& file = dynamic_cast<MemorySink&>(sink_.inner()).file(kFile);
    const std::uint64_t first = slot.space().offset;
    if (file.size() < first + kBytes) return false;
    for (std::size_t i = 0; i < kBytes; ++i)
      if (file[first + i] != byte(segment, i)) return false;
    return true;
  }
  void strike(Fault fault, std::uint64_t nth, milliseconds delay = milliseconds(30)) {
    FaultPlan plan;
    plan.strike = {fault, nth};
    plan.delay = delay;
    sink_.set_plan(plan);
  }
  std::uint64_t held() const { return budget_.usage(Tier::host).held_bytes; }

  Budget budget_{{0, 16 * kBytes, 16 * kBytes}};
  FileStore store_;
  TierCounters counters_;
  FaultSink sink_{FaultPlan{}};
  WriteBehind writes_{&sink_, &counters_, "disk", milliseconds(2000)};
};

TEST_F(WriteBehindTest, HoldsPagesUntilTheyAreThere) {
  const Slot one = slot(), other = slot();
  strike(Fault::delay, 4);  // the second one's second piece
  ASSERT_TRUE(begin(1, one));
  ASSERT_TRUE(begin(2, other));
  EXPECT_EQ(held(), 2 * kBytes);
  EXPECT_EQ(writes_.in_flight(), 6u);
  EXPECT_TRUE(writes_.has(1) && writes_.has(2));
  EXPECT_FALSE(writes_.has(3));
  ASSERT_TRUE(writes_.shrink_to(kBytes));
  EXPECT_FALSE(writes_.has(1));
  EXPECT_TRUE(writes_.has(2));
  EXPECT_EQ(held(), kBytes);
  EXPECT_EQ(counters_.disk_bytes_written, kBytes);
  ASSERT_TRUE(writes_.finish());
  EXPECT_TRUE(writes_.empty());
  EXPECT_EQ(writes_.in_flight(), 0u);
  EXPECT_EQ(held(), 0u);
  EXPECT_EQ(counters_.disk_bytes_written, 2 * kBytes);
  EXPECT_TRUE(is_there(1, one) && is_there(2, other));
}

TEST_F(WriteBehindTest, AnErrorIsOfItsPieceAndToldOnce) {
  const Slot one = slot(), other = slot();
  strike(Fault::io_error, 5);
  ASSERT_TRUE(begin(1, one));
  ASSERT_TRUE(begin(2, other));
  const Status told = writes_.finish();
  ASSERT_FALSE(told);
  EXPECT_EQ(told.error().code, ErrorCode::io);
  EXPECT_EQ(told.error().message, "disk: writing 8192 bytes at " +
                                      std::to_string(kBytes + 2 * kPieceBytes) +
                                      " failed: EIO (Input/output error)");
  EXPECT_EQ(counters_.disk_bytes_written, kBytes);
  EXPECT_EQ(held(), 0u);
  EXPECT_TRUE(writes_.empty());
  EXPECT_TRUE(writes_.finish());
}

// It stays until then: no reading may begin as if all were well.
TEST_F(WriteBehindTest, AnErrorThatNobodyWasToldOfIsNotEmpty) {
  const Slot one = slot();
  strike(Fault::io_error, 0);
  ASSERT_TRUE(begin(1, one));
  ASSERT_TRUE(writes_.shrink_to(0));
  EXPECT_FALSE(writes_.has(1));
  EXPECT_FALSE(writes_.empty());
  EXPECT_EQ(held(), 0u);
  Slot gone = slot();
  writes_.let_go(1, &gone);
  EXPECT_TRUE(writes_.empty());
  EXPECT_EQ(store_.taken, 2);  // nothing was on its way there
}

TEST_F(WriteBehindTest, KeepsThePlaceOfWhatIsGoneUntilNothingIsOnItsWay) {
  strike(Fault::delay, 2);
  {
    Slot one = slot();
    ASSERT_TRUE(begin(1, one));
    writes_.let_go(1, &one);
  }
  EXPECT_EQ(store_.taken, 1);
  EXPECT_FALSE(writes_.has(1));
  EXPECT_EQ(writes_.in_flight(), 3u);
  // Another segment of the same number is not taken for it.
  Slot other = slot();
  ASSERT_TRUE(begin(1, other));
  EXPECT_TRUE(writes_.has(1));
  ASSERT_TRUE(writes_.finish());
  EXPECT_EQ(store_.taken, 1);
  EXPECT_TRUE(is_there(1, other));
}

TEST_F(WriteBehindTest, LeavesTheCompletionsOfOthers) {
  const Slot one = slot();
  ASSERT_TRUE(begin(1, one));
  std::vector<std::byte> page(4096);
  const std::array<Transfer, 2> reads{Transfer{Transfer::Kind::read, kFile, 0, page, 70},
                                      Transfer{Transfer::Kind::read, kFile, 4096, page, 71}};
  ASSERT_TRUE(sink_.submit(reads));
  std::vector<std::uint64_t> tags;
  for (std::size_t left = 5; left > 0;) {
    Completion done[2];
    const auto polled = writes_.poll(done, std::chrono::steady_clock::now() + milliseconds(2000));
    ASSERT_TRUE(polled && polled->transfers > 0);
    left -= polled->transfers;
    for (std::size_t i = 0; i < polled->reads; ++i) tags.push_back(done[i].tag);
  }
  std::ranges::sort(tags);
  EXPECT_EQ(tags, (std::vector<std::uint64_t>{70, 71}));
  EXPECT_TRUE(writes_.empty());
}

TEST_F(WriteBehindTest, AWaitHasAnEnd) {
  writes_ = WriteBehind(&sink_, &counters_, "disk", milliseconds(20));
  const Slot one = slot();
  strike(Fault::delay, 0, milliseconds(300));
  ASSERT_TRUE(begin(1, one));
  const Status late = writes_.finish();
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().message, "disk: 1 writes did not finish within 20 ms");
  EXPECT_EQ(held(), kBytes);
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_TRUE(writes_.finish());
  EXPECT_EQ(held(), 0u);
}

// A sink that takes nothing.
class ShutSink final : public Sink {
 public:
  std::string_view name() const override { return "shut"; }
  Status submit(std::span<const Transfer>) override { return fail(ErrorCode::io, "shut"); }
  Result<std::size_t> poll(std::span<Completion>, Deadline) override { return std::size_t{0}; }
  std::size_t in_flight() const override { return 0; }
};

TEST_F(WriteBehindTest, WhatTheSinkRefusesIsNotOnItsWay) {
  ShutSink shut;
  writes_ = WriteBehind(&shut, &counters_, "disk", milliseconds(20));
  const Slot one = slot();
  EXPECT_FALSE(begin(1, one));
  EXPECT_TRUE(writes_.empty());
  EXPECT_EQ(held(), 0u);
}

}  // namespace
}  // namespace thermocline
