// The faults themselves: each happens as it says, is counted, and comes again from the same seed.
#include "tests/support/fault_sink.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>

#include "kernels/base/buffer.h"
#include "tests/support/memory_sink.h"
#include "tiers/io/checksum.h"

namespace thermocline {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr std::size_t kPages = 64;
constexpr int kFile = 3;

// Pages written through a FaultSink, with the checksums that they should have.
class Disk {
 public:
  explicit Disk(FaultPlan plan) : sink_(plan), page_(kPageBytes) {}
  FaultSink& sink() { return sink_; }

  int write(std::size_t page, std::uint64_t version) {
    for (std::size_t i = 0; i < kPageBytes; ++i)
      page_[i] =
          static_cast<std::byte>((page * 31 + version * 7 + i) * 0x9e3779b97f4a7c15ull >> 56);
    sums_[page] = page_checksum(page_, identity(page, version));
    versions_[page] = version;
    return run(Transfer::Kind::write, page);
  }
  int read(std::size_t page) { return run(Transfer::Kind::read, page); }
  bool verifies(std::size_t page) const {
    return page_checksum(page_, identity(page, versions_[page])) == sums_[page];
  }
  void fill() {
    sink_.set_plan({});
    for (std::uint64_t version = 1; version <= 2; ++version)
      for (std::size_t page = 0; page < kPages; ++page) ASSERT_EQ(write(page, version), 0);
  }

 private:
  static std::uint64_t identity(std::size_t page, std::uint64_t version) {
    return page << 32 | version;
  }
  int run(Transfer::Kind kind, std::size_t page) {
    const Transfer transfer{
        .kind = kind, .file = kFile, .offset = page * kPageBytes, .bytes = page_};
    EXPECT_TRUE(sink_.submit({&transfer, 1}));
    Completion done{.tag = 1, .error = -1};
    EXPECT_EQ(sink_.poll({&done, 1}, Clock::now() + 10s).value(), 1u);
    EXPECT_EQ(done.tag, 0u);
    return done.error;
  }

  FaultSink sink_;
  std::vector<std::byte> page_;
  std::array<std::uint64_t, kPages> sums_{}, versions_{};
};

TEST(FaultSink, WithoutAPlanNothingHappens) {
  Disk disk({});
  disk.fill();
  for (std::size_t page = 0; page < kPages; ++page) {
    EXPECT_EQ(disk.read(page), 0);
    EXPECT_TRUE(disk.verifies(page));
  }
  EXPECT_EQ(disk.sink().counts().reads, kPages);
  EXPECT_EQ(disk.sink().counts().writes, 2 * kPages);
  EXPECT_EQ(disk.sink().counts().written_bytes, 2 * kPages * kPageBytes);
  EXPECT_EQ(disk.sink().counts().completions, 3 * kPages);
  EXPECT_EQ(disk.sink().counts().silent(), 0u);
}

TEST(FaultSink, ErrorsAreReportedAndCounted) {
  const std::vector<std::pair<Fault, int>> kinds = {
      {Fault::io_error, EIO}, {Fault::again, EAGAIN}, {Fault::short_read, ENODATA}};
  for (const auto& [fault, error] : kinds) {
    Disk disk({});
    disk.fill();
    FaultPlan plan;
    plan.strike = FaultPlan::Strike{.fault = fault, .nth = 2};
    disk.sink().set_plan(plan);
    for (std::size_t page = 0; page < 6; ++page)
      EXPECT_EQ(disk.read(page), page == 2 ? error : 0) << page;
    EXPECT_EQ(disk.sink().counts()[fault], 1u);
    plan.strike->for_ever = true;
    disk.sink().set_plan(plan);
    for (std::size_t page = 0; page < 6; ++page)
      EXPECT_EQ(disk.read(page), page >= 2 ? error : 0) << page;
    EXPECT_EQ(disk.sink().counts()[fault], 5u);
  }
}

TEST(FaultSink, SilentFaultsAreSilentAndAChecksumSeesEachOfThem) {
  for (const Fault fault : {Fault::bit_flip, Fault::misdirected, Fault::stale}) {
    Disk disk({});
    disk.fill();
    FaultPlan plan{.seed = 99};
    disk.sink().set_plan(plan.with(fault, 0.3));
    std::uint64_t caught = 0;
    for (std::size_t i = 0; i < 10 * kPages; ++i) {
      EXPECT_EQ(disk.read(i % kPages), 0);
      caught += disk.verifies(i % kPages) ? 0 : 1;
    }
    EXPECT_GT(caught, 100u);
    EXPECT_EQ(caught, disk.sink().counts()[fault]);
    EXPECT_EQ(caught, disk.sink().counts().silent());
  }
}

TEST(FaultSink, LostWritesLeaveTheOldPage) {
  Disk disk({});
  disk.fill();
  FaultPlan plan;
  plan.strike = FaultPlan::Strike{.fault = Fault::lost_write, .nth = 1};
  disk.sink().set_plan(plan);
  for (std::size_t page = 0; page < 3; ++page) EXPECT_EQ(disk.write(page, 3), 0);
  for (std::size_t page = 0; page < 3; ++page) {
    EXPECT_EQ(disk.read(page), 0);
    EXPECT_EQ(disk.verifies(page), page != 1);
  }
}

TEST(FaultSink, StaleAndMisdirectedNeedSomethingToReturn) {
  Disk disk({});
  for (std::size_t page = 0; page < 1; ++page) ASSERT_EQ(disk.write(page, 1), 0);
  FaultPlan plan;
  disk.sink().set_plan(plan.with(Fault::stale, 1).with(Fault::misdirected, 1));
  EXPECT_EQ(disk.read(0), 0);
  EXPECT_TRUE(disk.verifies(0));
  EXPECT_EQ(disk.sink().counts().silent(), 0u);
}

TEST(FaultSink, DelaysRespectDeadlines) {
  FaultPlan plan{.delay = 50ms};
  FaultSink sink(plan.with(Fault::delay, 1));
  std::vector<std::byte> page(kPageBytes);
  const Transfer write{.kind = Transfer::Kind::write, .file = kFile, .bytes = page};
  ASSERT_TRUE(sink.submit({&write, 1}));
  std::array<Completion, 1> out;
  const auto start = Clock::now();
  EXPECT_EQ(sink.poll(out, start + 5ms).value(), 0u);
  EXPECT_LT(Clock::now() - start, 45ms);
  EXPECT_EQ(sink.in_flight(), 1u);
  EXPECT_EQ(sink.poll(out, start + 30s).value(), 1u);
  EXPECT_GE(Clock::now() - start, 50ms);
}

std::vector<std::uint64_t> order_of_completion(std::uint64_t seed) {
  FaultPlan plan{.seed = seed};
  plan.reorder = true;
  FaultSink sink(plan);
  std::vector<std::byte> page(kPageBytes);
  std::vector<Transfer> transfers;
  for (std::uint64_t tag = 0; tag < 32; ++tag)
    transfers.push_back({.kind = Transfer::Kind::write, .file = kFile, .bytes = page, .tag = tag});
  EXPECT_TRUE(sink.submit(transfers));
  std::vector<std::uint64_t> order;
  std::array<Completion, 5> out;
  while (sink.in_flight() > 0) {
    const std::size_t count = sink.poll(out, Clock::now() + 10s).value();
    for (std::size_t i = 0; i < count; ++i) order.push_back(out[i].tag);
  }
  return order;
}

TEST(FaultSink, TheSeedDecidesTheOrder) {
  const auto order = order_of_completion(5);
  EXPECT_EQ(order, order_of_completion(5));
  EXPECT_NE(order, order_of_completion(6));
  EXPECT_FALSE(std::ranges::is_sorted(order));
  auto sorted = order;
  std::ranges::sort(sorted);
  for (std::uint64_t tag = 0; tag < 32; ++tag) EXPECT_EQ(sorted[tag], tag);
}

}  // namespace
}  // namespace thermocline
