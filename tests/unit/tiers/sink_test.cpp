// Every back end, and faults on top of one, through one suite.
#include "tiers/io/sink.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "kernels/base/buffer.h"
#include "tests/support/fault_sink.h"
#include "tiers/io/attempt.h"
#include "tiers/io/descriptor.h"
#include "tiers/io/left_to_kernel.h"

namespace thermocline {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr std::size_t kFilePages = 513;  // no power of two

std::byte expected_byte(std::uint64_t offset) {
  return static_cast<std::byte>((offset * 0x9e3779b97f4a7c15ull) >> 56);
}

Descriptor unnamed_file(int flags) {
  Descriptor file(::open(THERMOCLINE_BINARY_DIR, O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600));
  if (!file.open()) file = Descriptor(::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600));
  return file;
}

Descriptor patterned_file(std::size_t bytes, int flags = 0) {
  Descriptor file = unnamed_file(flags);
  auto content = Buffer::create(round_up(bytes, kPageBytes));
  for (std::size_t i = 0; i < bytes; ++i) content->data()[i] = expected_byte(i);
  if (::pwrite(file.number(), content->data(), round_up(bytes, kPageBytes), 0) < 0 ||
      ::ftruncate(file.number(), static_cast<off_t>(bytes)) != 0)
    return {};
  return file;
}

bool as_expected(std::span<const std::byte> bytes, std::uint64_t offset) {
  for (std::size_t i = 0; i < bytes.size(); ++i)
    if (bytes[i] != expected_byte(offset + i)) return false;
  return true;
}

class SinkTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto opened = open_sink(backend(), {.depth = 8, .threads = 3});
    if (!opened && backend() != sink_names().back()) GTEST_SKIP() << opened.error().message;
    ASSERT_TRUE(opened) << opened.error().message;
    EXPECT_EQ(opened->note, "");
    sink_ = std::move(opened->sink);
    if (GetParam() != "faults") return;
    FaultPlan plan;
    plan.with(Fault::delay, 0.2).reorder = true;
    sink_ = std::make_unique<FaultSink>(std::move(sink_), plan);
  }

  static std::string backend() {  // that is opened, or lies below the faults
    return std::string(GetParam() == "faults" ? sink_names().back() : GetParam());
  }

  // Polls until nothing is in flight: tag -> error. Every tag once.
  std::map<std::uint64_t, int> finish(std::size_t at_once = 5) {
    std::map<std::uint64_t, int> errors;
    std::vector<Completion> out(at_once);
    const auto limit = Clock::now() + 30s;
    while (sink_->in_flight() > 0) {
      const auto count = sink_->poll(out, limit);
      EXPECT_TRUE(count) << count.error().message;
      if (!count || *count == 0) break;
      for (std::size_t i = 0; i < *count; ++i)
        EXPECT_TRUE(errors.emplace(out[i].tag, out[i].error).second) << "tag " << out[i].tag;
    }
    EXPECT_EQ(sink_->in_flight(), 0u);
    return errors;
  }
  int finish_one(const Transfer& transfer) {
    const Status submitted = sink_->submit({&transfer, 1});
    EXPECT_TRUE(submitted) << submitted.error().message;
    const auto errors = finish();
    return errors.size() == 1 ? errors.begin()->second : -1;
  }

  std::unique_ptr<Sink> sink_;
};

TEST_P(SinkTest, ReadsManyExtentsInOneSubmission) {
  const Descriptor file = patterned_file(kFilePages * kPageBytes);
  ASSERT_TRUE(file.open());
  std::mt19937_64 random(7);
  constexpr std::size_t kTransfers = 1000;  // far more than the ring holds
  auto memory = Buffer::create(kTransfers * 3 * kPageBytes);
  std::vector<Transfer> transfers;
  for (std::size_t i = 0; i < kTransfers; ++i) {
    const std::size_t pages = 1 + random() % 3;
    transfers.push_back({.file = file.number(),
                         .offset = random() % (kFilePages - pages + 1) * kPageBytes,
                         .bytes = memory->bytes().subspan(i * 3 * kPageBytes, pages * kPageBytes),
                         .tag = 1'000'000 + i});
  }
  ASSERT_TRUE(sink_->submit(transfers));
  EXPECT_EQ(sink_->in_flight(), kTransfers);
  const auto errors = finish();
  ASSERT_EQ(errors.size(), kTransfers);
  for (std::size_t i = 0; i < kTransfers; ++i) {
    EXPECT_EQ(errors.at(1'000'000 + i), 0);
    ASSERT_TRUE(as_expected(transfers[i].bytes, transfers[i].offset)) << "transfer " << i;
  }
}

// A pipe that nobody writes to; and, for who reads a place of it, the kernel's messages, which end.
TEST_P(SinkTest, WaitsForTheKernelNoLongerThanItIsTold) {
  EXPECT_TRUE(sink_->drain(Clock::now()));
  const std::string pipe = ::testing::TempDir() + "thermocline-pipe-" + std::to_string(::getpid());
  const bool ring = backend() != sink_names().back();
  ASSERT_TRUE(!ring || ::mkfifo(pipe.c_str(), 0600) == 0);
  // Not closed if a thread is left that reads it.
  const int file =
      ring ? ::open(pipe.c_str(), O_RDWR | O_CLOEXEC) : ::open("/dev/kmsg", O_RDONLY | O_CLOEXEC);
  if (ring) ::unlink(pipe.c_str());
  if (file < 0) GTEST_SKIP() << "/dev/kmsg, which keeps a reader waiting, cannot be opened";
  if (!ring) ::lseek(file, 0, SEEK_END);
  auto memory = Buffer::create(2 * kPageBytes);
  const Transfer read{.file = file, .bytes = memory->bytes()};
  ASSERT_TRUE(sink_->submit({&read, 1}));
  std::this_thread::sleep_for(50ms);
  const auto start = Clock::now();
  const bool drained = sink_->drain(start + 100ms);
  EXPECT_LT(Clock::now() - start, 5s);
  if (ring) {
    EXPECT_FALSE(drained);
    ASSERT_EQ(::write(file, "x", 1), 1);
    EXPECT_TRUE(sink_->drain(Clock::now() + 10s));
  }
  if (drained || ring) ::close(file);
  if (ring) return;
  if (drained) GTEST_SKIP() << "/dev/kmsg keeps no reader waiting here";
  leave_to_kernel(std::move(*memory));
  leave_to_kernel(std::move(sink_));
}

TEST_P(SinkTest, ReadsAndWritesDirectly) {
  const Descriptor file = unnamed_file(O_DIRECT);
  if (!file.open()) GTEST_SKIP() << "no filesystem here allows O_DIRECT";
  auto source = Buffer::create(64 * kPageBytes), target = Buffer::create(64 * kPageBytes);
  std::mt19937 random(3);
  for (auto& byte : source->bytes()) byte = static_cast<std::byte>(random());
  std::vector<Transfer> transfers;
  for (std::size_t page = 0; page < 64; page += 4)
    transfers.push_back({.kind = Transfer::Kind::write,
                         .file = file.number(),
                         .offset = page * kPageBytes,
                         .bytes = source->bytes().subspan(page * kPageBytes, 4 * kPageBytes),
                         .tag = page});
  ASSERT_TRUE(sink_->submit(transfers));
  for (const auto& [tag, error] : finish()) ASSERT_EQ(error, 0) << tag;
  for (auto& transfer : transfers) {
    transfer.kind = Transfer::Kind::read;
    transfer.bytes = target->bytes().subspan(transfer.offset, transfer.bytes.size());
  }
  ASSERT_TRUE(sink_->submit(transfers));
  for (const auto& [tag, error] : finish()) ASSERT_EQ(error, 0) << tag;
  EXPECT_TRUE(std::ranges::equal(source->bytes(), target->bytes()));
}

TEST_P(SinkTest, AwkwardSizesThroughThePageCache) {
  const Descriptor file = patterned_file(kFilePages * kPageBytes);
  std::vector<std::byte> memory(3 * kPageBytes);
  for (const std::size_t size : {1, 511, 4095, 4096, 4097, 12287})
    for (const std::uint64_t offset : {0, 1, 4095, 100'001}) {
      const std::span<std::byte> bytes = std::span(memory).first(size);
      ASSERT_EQ(finish_one({.file = file.number(), .offset = offset, .bytes = bytes}), 0);
      ASSERT_TRUE(as_expected(bytes, offset)) << size << " at " << offset;
    }
}

TEST_P(SinkTest, AFileThatEndsInsideIsAnErrorAndNotAShortRead) {
  for (const int flags : {0, O_DIRECT}) {
    for (const std::size_t bytes : {5000u, 8192u, 1u}) {
      const Descriptor file = patterned_file(bytes, flags);
      if (!file.open()) continue;
      auto memory = Buffer::create(4 * kPageBytes);
      EXPECT_EQ(finish_one({.file = file.number(), .bytes = memory->bytes()}), ENODATA)
          << bytes << " bytes, flags " << flags;
      EXPECT_EQ(finish_one({.file = file.number(), .offset = 1 << 20, .bytes = memory->bytes()}),
                ENODATA);
    }
  }
}

TEST_P(SinkTest, FailuresCarryTheirErrnoAndOnlyTheirTag) {
  const Descriptor file = patterned_file(16 * kPageBytes);
  const Descriptor write_only(::open("/dev/null", O_WRONLY | O_CLOEXEC));
  auto memory = Buffer::create(4 * kPageBytes);
  const auto page = [&](std::size_t i) {
    return memory->bytes().subspan(i * kPageBytes, kPageBytes);
  };
  const std::array transfers = {
      Transfer{.file = file.number(), .bytes = page(0), .tag = 10},
      Transfer{.file = 1 << 20, .bytes = page(1), .tag = 11},
      Transfer{.file = write_only.number(), .bytes = page(2), .tag = 12},
      Transfer{.file = file.number(), .offset = kPageBytes, .bytes = page(3), .tag = 13}};
  ASSERT_TRUE(sink_->submit(transfers));
  const std::map<std::uint64_t, int> wanted = {{10, 0}, {11, EBADF}, {12, EBADF}, {13, 0}};
  EXPECT_EQ(finish(1), wanted);
  EXPECT_TRUE(as_expected(page(0), 0));
  EXPECT_TRUE(as_expected(page(3), kPageBytes));
}

TEST_P(SinkTest, AFullDeviceIsAnErrorOfTheWrite) {
  const Descriptor full(::open("/dev/full", O_RDWR | O_CLOEXEC));
  if (!full.open()) GTEST_SKIP() << "there is no /dev/full";
  std::vector<std::byte> memory(kPageBytes);
  EXPECT_EQ(finish_one({.kind = Transfer::Kind::write, .file = full.number(), .bytes = memory}),
            ENOSPC);
}

TEST_P(SinkTest, TakesAllOrNone) {
  const Descriptor file = patterned_file(kPageBytes);
  std::vector<std::byte> memory(kPageBytes);
  const std::array transfers = {Transfer{.file = file.number(), .bytes = memory},
                                Transfer{.file = file.number(), .bytes = {}}};
  const Status status = sink_->submit(transfers);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(sink_->in_flight(), 0u);
  EXPECT_TRUE(sink_->submit({}));
}

TEST_P(SinkTest, NothingInFlightReturnsAtOnce) {
  std::array<Completion, 2> out;
  const auto start = Clock::now();
  EXPECT_EQ(sink_->poll(out, Clock::now() + 1h).value(), 0u);
  EXPECT_LT(Clock::now() - start, 10s);
}

// A pipe that nobody writes to: the read stays in flight for as long as we like.
class Stall {
 public:
  Stall() {
    std::array<int, 2> ends{-1, -1};
    if (::pipe2(ends.data(), O_CLOEXEC) == 0)
      read_ = Descriptor(ends[0]), write_ = Descriptor(ends[1]);
  }
  int file() const { return read_.number(); }
  void end() { write_ = Descriptor(); }

 private:
  Descriptor read_, write_;
};

TEST_P(SinkTest, ALookWithoutWaitingReturnsAtOnce) {
  const Descriptor file = patterned_file(kFilePages * kPageBytes);
  auto memory = Buffer::create(kFilePages * kPageBytes);
  const Transfer transfer{.file = file.number(), .bytes = memory->bytes(), .tag = 3};
  ASSERT_TRUE(sink_->submit({&transfer, 1}));
  std::array<Completion, 1> out;
  std::size_t received = 0;
  for (int look = 0; look < 100'000 && received == 0; ++look) {
    received = sink_->poll(out, Clock::time_point::min()).value();
    if (received == 0) std::this_thread::sleep_for(50us);
  }
  ASSERT_EQ(received, 1u);
  EXPECT_EQ(out[0].tag, 3u);
  EXPECT_TRUE(as_expected(memory->bytes(), 0));
}

TEST_P(SinkTest, DestructionWaitsAndNothingTouchesTheMemoryAfterwards) {
  // Directly where that works: then reads are in flight, and not copies that are over at once.
  Descriptor file = patterned_file(kFilePages * kPageBytes, O_DIRECT);
  if (!file.open()) file = patterned_file(kFilePages * kPageBytes);
  for (int round = 0; round < 20; ++round) {
    if (!sink_) {
      auto opened = open_sink(backend(), {});
      ASSERT_TRUE(opened) << opened.error().message;
      sink_ = std::move(opened->sink);
    }
    auto memory = Buffer::create(256 * kPageBytes);
    std::vector<Transfer> transfers;
    for (std::size_t i = 0; i < 256; ++i)
      transfers.push_back({.file = file.number(),
                           .offset = i * kPageBytes,
                           .bytes = memory->bytes().subspan(i * kPageBytes, kPageBytes)});
    ASSERT_TRUE(sink_->submit(transfers));
    sink_.reset();
    std::ranges::fill(memory->bytes(), std::byte{0xcc});
    std::this_thread::sleep_for(1ms);
    ASSERT_TRUE(
        std::ranges::all_of(memory->bytes(), [](std::byte b) { return b == std::byte{0xcc}; }));
  }
}

TEST_P(SinkTest, ChangesHandsBetweenThreadsWhenNothingIsInFlight) {
  const Descriptor file = patterned_file(64 * kPageBytes);
  for (int round = 0; round < 3; ++round) {
    std::vector<std::byte> memory(kPageBytes);
    std::thread([&] {
      EXPECT_EQ(finish_one({.file = file.number(), .offset = kPageBytes, .bytes = memory}), 0);
    }).join();
    EXPECT_TRUE(as_expected(memory, kPageBytes));
    EXPECT_EQ(finish_one({.file = file.number(), .offset = 0, .bytes = memory}), 0);
    EXPECT_TRUE(as_expected(memory, 0));
  }
}

TEST_P(SinkTest, MayBeDestroyedElsewhereOnceItsThreadHasEnded) {
  const Descriptor file = patterned_file(kFilePages * kPageBytes);
  auto memory = Buffer::create(kFilePages * kPageBytes);
  std::thread([&] {
    std::vector<Transfer> transfers;
    for (std::size_t i = 0; i < kFilePages; ++i)
      transfers.push_back({.file = file.number(),
                           .offset = i * kPageBytes,
                           .bytes = memory->bytes().subspan(i * kPageBytes, kPageBytes)});
    EXPECT_TRUE(sink_->submit(transfers));
  }).join();
  sink_.reset();
}

// Inside of it, outside of it and across its ends; and so on another thread, which has to do it all
// again.
TEST_P(SinkTest, KeptMemoryChangesNothing) {
  const Descriptor file = patterned_file(kFilePages * kPageBytes);
  auto memory = Buffer::create(64 * kPageBytes);
  const auto kept = memory->bytes().subspan(8 * kPageBytes, 32 * kPageBytes);
  EXPECT_EQ(sink_->keep(kept), GetParam() == "uring");
  const Descriptor copy = patterned_file(kFilePages * kPageBytes);
  std::mt19937 random(13);
  const auto transfer_some = [&] {
    for (int i = 0; i < 200; ++i) {
      const std::size_t pages = 1 + random() % 4, at = random() % (64 - pages + 1);
      const std::uint64_t offset = random() % (kFilePages - pages + 1) * kPageBytes;
      const auto bytes = memory->bytes().subspan(at * kPageBytes, pages * kPageBytes);
      std::ranges::fill(bytes, std::byte{1});
      ASSERT_EQ(finish_one({.file = file.number(), .offset = offset, .bytes = bytes}), 0);
      ASSERT_TRUE(as_expected(bytes, offset)) << at << " and " << pages << " pages";
      ASSERT_EQ(
          finish_one(
              {.kind = Transfer::Kind::write, .file = copy.number(), .offset = 0, .bytes = bytes}),
          0);
      std::vector<std::byte> written(bytes.size());
      ASSERT_EQ(::pread(copy.number(), written.data(), written.size(), 0), std::ssize(written));
      ASSERT_TRUE(std::ranges::equal(written, bytes));
    }
  };
  transfer_some();
  std::thread(transfer_some).join();
  transfer_some();
}

TEST_P(SinkTest, SubmittingWhilePollingKeepsEveryTag) {
  const Descriptor file = patterned_file(kFilePages * kPageBytes);
  auto memory = Buffer::create(32 * kPageBytes);
  std::vector<std::uint64_t> offset_of(32);
  std::mt19937_64 random(11);
  std::size_t sent = 0, received = 0;
  const auto send = [&](std::size_t slot) {
    offset_of[slot] = random() % kFilePages * kPageBytes;
    const Transfer transfer{.file = file.number(),
                            .offset = offset_of[slot],
                            .bytes = memory->bytes().subspan(slot * kPageBytes, kPageBytes),
                            .tag = slot};
    ASSERT_TRUE(sink_->submit({&transfer, 1}));
    ++sent;
  };
  for (std::size_t slot = 0; slot < 32; ++slot) send(slot);
  std::array<Completion, 7> out;
  while (received < 5000) {
    const std::size_t count = sink_->poll(out, Clock::now() + 30s).value();
    ASSERT_GT(count, 0u);
    for (std::size_t i = 0; i < count; ++i, ++received) {
      ASSERT_EQ(out[i].error, 0);
      ASSERT_TRUE(as_expected(memory->bytes().subspan(out[i].tag * kPageBytes, kPageBytes),
                              offset_of[out[i].tag]));
      if (sent < 5000) send(out[i].tag);
    }
  }
  EXPECT_EQ(sink_->in_flight(), 0u);
}

std::vector<std::string> back_ends_and_faults() {
  const std::vector<std::string_view> names = sink_names();
  std::vector<std::string> all(names.begin(), names.end());
  all.emplace_back("faults");
  return all;
}

INSTANTIATE_TEST_SUITE_P(Backends, SinkTest, ::testing::ValuesIn(back_ends_and_faults()),
                         [](const auto& suite) { return suite.param; });

TEST(UringSink, DeadlinesAreKeptWhileATransferHangs) {
  auto opened = open_sink("uring", {.depth = 8});
  if (!opened) GTEST_SKIP() << opened.error().message;
  const auto sink = std::move(opened->sink);
  Stall stall;
  std::vector<std::byte> memory(16);
  const Transfer transfer{.file = stall.file(), .bytes = memory, .tag = 5};
  ASSERT_TRUE(sink->submit({&transfer, 1}));
  std::array<Completion, 1> out;
  for (const auto wait : {0ms, 30ms}) {
    const auto start = Clock::now();
    EXPECT_EQ(sink->poll(out, start + wait).value(), 0u);
    EXPECT_GE(Clock::now() - start, wait);
    EXPECT_LT(Clock::now() - start, wait + 5s);
    EXPECT_EQ(sink->in_flight(), 1u);
  }
  EXPECT_EQ(sink->poll(out, Clock::time_point::min()).value(), 0u);
  // Others overtake the one that hangs.
  const Descriptor file = patterned_file(kPageBytes);
  std::vector<std::byte> page(kPageBytes);
  const Transfer second{.file = file.number(), .bytes = page, .tag = 6};
  ASSERT_TRUE(sink->submit({&second, 1}));
  ASSERT_EQ(sink->poll(out, Clock::time_point::max()).value(), 1u);
  EXPECT_EQ(out[0].tag, 6u);
  stall.end();
  ASSERT_EQ(sink->poll(out, Clock::now() + 10s).value(), 1u);
  EXPECT_EQ(out[0].tag, 5u);
  EXPECT_EQ(out[0].error, ENODATA);
}

TEST(UringSink, DestructionWaitsForWhatTheKernelHolds) {
  auto opened = open_sink("uring", {.depth = 8});
  if (!opened) GTEST_SKIP() << opened.error().message;
  Stall stall;
  std::vector<std::byte> memory(16);
  const Transfer transfer{.file = stall.file(), .bytes = memory};
  ASSERT_TRUE(opened->sink->submit({&transfer, 1}));
  const auto start = Clock::now();
  std::thread later([&] {
    std::this_thread::sleep_for(50ms);
    stall.end();
  });
  opened->sink.reset();
  EXPECT_GE(Clock::now() - start, 50ms);
  later.join();
}

TEST(OpenSink, RefusesWhatItDoesNotKnow) {
  const auto unknown = open_sink("libaio", {});
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, ErrorCode::invalid_argument);
  EXPECT_NE(unknown.error().message.find("auto, uring, threads"), std::string::npos);
  for (const SinkOptions options : {SinkOptions{.depth = 0}, SinkOptions{.depth = 1 << 20},
                                    SinkOptions{.threads = 0}, SinkOptions{.threads = 1 << 20}})
    EXPECT_FALSE(open_sink("threads", options));
}

TEST(OpenSink, ASinkHasTheNameThatItIsOpenedBy) {
  for (const std::string_view name : sink_names()) {
    const auto opened = open_sink(name, {});
    EXPECT_EQ(opened ? opened->sink->name() : name, name);
  }
}

TEST(OpenSink, OddDepthsWork) {
  for (const std::size_t depth : {1, 3, 33, 4096}) {
    const auto sink = open_sink("auto", {.depth = depth});
    ASSERT_TRUE(sink) << sink.error().message;
  }
}

Attempt attempt_of(std::span<std::byte> bytes, Transfer::Kind kind = Transfer::Kind::read) {
  return {.transfer = {.kind = kind, .offset = 8192, .bytes = bytes}};
}

TEST(Attempt, GoesOnFromWholePages) {
  std::vector<std::byte> memory(3 * kPageBytes);
  Attempt attempt = attempt_of(memory);
  EXPECT_EQ(attempt.settle(kPageBytes + 511), std::nullopt);
  EXPECT_EQ(attempt.offset(), 8192 + kPageBytes);
  EXPECT_EQ(attempt.rest().size(), 2 * kPageBytes);
  EXPECT_EQ(attempt.settle(-EINTR), std::nullopt);
  EXPECT_EQ(attempt.settle(-EAGAIN), std::nullopt);
  EXPECT_EQ(attempt.offset(), 8192 + kPageBytes);
  EXPECT_EQ(attempt.settle(2 * kPageBytes), 0);
}

TEST(Attempt, GivesUpAfterABoundedNumberOfFruitlessAnswers) {
  std::vector<std::byte> memory(2 * kPageBytes);
  const std::vector<std::pair<std::int64_t, int>> answers = {
      {-EAGAIN, EAGAIN}, {-EINTR, EINTR}, {100, ENODATA}};
  for (const auto& [answer, error] : answers) {
    Attempt attempt = attempt_of(memory);
    std::optional<int> verdict;
    int tries = 0;
    while (!verdict && tries < 1000) verdict = attempt.settle(answer), ++tries;
    EXPECT_EQ(verdict, error);
    EXPECT_EQ(tries, Attempt::kTries);
  }
  Attempt write = attempt_of(memory, Transfer::Kind::write);
  std::optional<int> verdict;
  for (int i = 0; i < Attempt::kTries; ++i) verdict = write.settle(0);
  EXPECT_EQ(verdict, EIO);
  EXPECT_EQ(attempt_of(memory).settle(0), ENODATA);
  EXPECT_EQ(attempt_of(memory).settle(-EIO), EIO);
}

}  // namespace
}  // namespace thermocline
