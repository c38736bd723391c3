// What io_uring itself answers when it cannot: nothing is lost, nobody waits for ever, and what it
// was is said.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "kernels/base/buffer.h"
#include "tests/faults/kernel_faults.h"
#include "tiers/io/descriptor.h"
#include "tiers/io/sink.h"
#include "tiers/io/uring_sink.h"

namespace thermocline {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr std::size_t kPages = 64;
constexpr int kForEver = 1 << 30;

RingRefusals entering(int error, int times) {
  RingRefusals refusals;
  refusals.enter = error;
  refusals.enters = times;
  return refusals;
}
RingRefusals setting_up(int error, int times) {
  RingRefusals refusals;
  refusals.setup = error;
  refusals.setups = times;
  return refusals;
}
RingRefusals keeping(int error, int times) {
  RingRefusals refusals;
  refusals.keep = error;
  refusals.keeps = times;
  return refusals;
}
RingRefusals waiting(int error, int times) {
  RingRefusals refusals;
  refusals.wait = error;
  refusals.waits = times;
  return refusals;
}

std::byte byte_at(std::size_t at) { return static_cast<std::byte>((at * 2654435761u) >> 13); }

class RingFaults : public ::testing::Test {
 protected:
  void SetUp() override {
    auto opened = open_uring_sink({});
    if (!opened) GTEST_SKIP() << opened.error().message;
    sink_ = std::move(*opened);
    // Directly where that works: then reads are in flight, and not copies that are over at once.
    for (const int flag : {O_DIRECT, 0})
      if (!file_.open())
        file_ =
            Descriptor(::open(THERMOCLINE_BINARY_DIR, O_TMPFILE | O_RDWR | O_CLOEXEC | flag, 0600));
    ASSERT_TRUE(file_.open());
    memory_ = *Buffer::create(kPages * kPageBytes);
    for (std::size_t i = 0; i < memory_.size(); ++i) memory_.data()[i] = byte_at(i);
    ASSERT_EQ(::pwrite(file_.number(), memory_.data(), memory_.size(), 0),
              static_cast<ssize_t>(memory_.size()));
    std::ranges::fill(memory_.bytes(), std::byte{0});
  }
  void TearDown() override { set_ring_refusals({}); }

  std::vector<Transfer> reads() {
    std::vector<Transfer> all;
    for (std::size_t p = 0; p < kPages; ++p)
      all.push_back({.kind = Transfer::Kind::read,
                     .file = file_.number(),
                     .offset = p * kPageBytes,
                     .bytes = memory_.bytes().subspan(p * kPageBytes, kPageBytes),
                     .tag = p});
    return all;
  }
  // Tag -> error, of everything in flight.
  std::map<std::uint64_t, int> finish() {
    std::map<std::uint64_t, int> errors;
    std::array<Completion, 16> out;
    while (sink_->in_flight() > 0) {
      const auto count = sink_->poll(out, Clock::now() + 10s);
      EXPECT_TRUE(count) << count.error().message;
      if (!count || *count == 0) break;
      for (std::size_t i = 0; i < *count; ++i)
        EXPECT_TRUE(errors.emplace(out[i].tag, out[i].error).second);
    }
    return errors;
  }
  void expect_all_read() {
    ASSERT_TRUE(sink_->submit(reads()));
    const auto errors = finish();
    ASSERT_EQ(errors.size(), kPages);
    for (const auto& [tag, error] : errors) EXPECT_EQ(error, 0) << tag;
    for (std::size_t i = 0; i < memory_.size(); ++i) ASSERT_EQ(memory_.data()[i], byte_at(i)) << i;
  }

  void expect_nothing_arrives() {
    std::ranges::fill(memory_.bytes(), std::byte{0xcc});
    std::this_thread::sleep_for(3ms);
    EXPECT_TRUE(
        std::ranges::all_of(memory_.bytes(), [](std::byte b) { return b == std::byte{0xcc}; }));
  }

  std::unique_ptr<Sink> sink_;
  Descriptor file_;
  Buffer memory_;
};

TEST_F(RingFaults, EnteringThatIsRefusedForAWhileIsTriedAgain) {
  for (const int error : {EAGAIN, EBUSY, EINTR, ETIME})
    for (const int times : {1, 7, 40}) {
      SCOPED_TRACE(std::to_string(error) + ", " + std::to_string(times) + " times");
      std::ranges::fill(memory_.bytes(), std::byte{0});
      set_ring_refusals(entering(error, times));
      expect_all_read();
      EXPECT_EQ(ring_refusals_left().enters, 0);
    }
}

TEST_F(RingFaults, ARingThatBreaksFailsEverythingAndSaysWhy) {
  for (const auto& [error, times] : {std::pair(EBADR, 1), {EAGAIN, kForEver}, {EBUSY, kForEver}}) {
    SCOPED_TRACE(error);
    auto opened = open_uring_sink({.depth = 8});
    ASSERT_TRUE(opened);
    sink_ = std::move(*opened);
    expect_all_read();
    set_ring_refusals(entering(error, times));
    const auto start = Clock::now();
    const Status submitted = sink_->submit(reads());
    if (submitted) {
      const auto errors = finish();
      EXPECT_EQ(errors.size(), kPages);
      for (const auto& [tag, got] : errors) EXPECT_EQ(got, error) << tag;
    }
    EXPECT_EQ(sink_->in_flight(), 0u);
    EXPECT_LT(Clock::now() - start, 5s);
    set_ring_refusals({});
    // Whatever was in flight has arrived or never will.
    expect_nothing_arrives();
    const Status again = sink_->submit(reads());
    ASSERT_FALSE(again);
    EXPECT_NE(again.error().message.find("io_uring failed earlier with"), std::string::npos);
    EXPECT_FALSE(sink_->keep(memory_.bytes()));
    sink_.reset();
  }
}

TEST_F(RingFaults, BreakingInTheMiddleWaitsForWhatTheKernelHas) {
  int broken = 0;
  for (int before = 0; before < 6; ++before) {
    auto opened = open_uring_sink({.depth = 32});
    ASSERT_TRUE(opened);
    sink_ = std::move(*opened);
    ASSERT_TRUE(sink_->submit(reads()));
    std::array<Completion, 2> out;
    std::size_t seen = 0;
    for (int i = 0; i < before; ++i) seen += sink_->poll(out, Clock::now() + 10s).value();
    set_ring_refusals(entering(EBADR, 1));
    std::size_t failed = 0;
    while (sink_->in_flight() > 0) {
      const std::size_t count = sink_->poll(out, Clock::now() + 10s).value();
      ASSERT_GT(count, 0u);
      for (std::size_t i = 0; i < count; ++i) failed += out[i].error == EBADR;
      seen += count;
    }
    EXPECT_EQ(seen, kPages);
    // What the kernel had is whole, what waited has failed.
    broken += failed > 0;
    set_ring_refusals({});
    expect_nothing_arrives();
  }
  EXPECT_GT(broken, 0);
}

TEST_F(RingFaults, ARingIsMadeOfWhatTheKernelGives) {
  // Halved from 128 entries to 8, then asked for again as memory comes back; older kernels know
  // fewer flags.
  for (const auto& refusals : {setting_up(ENOMEM, 1), setting_up(ENOMEM, 4), setting_up(ENOMEM, 8),
                               setting_up(EINVAL, 1), setting_up(EINVAL, 2)}) {
    SCOPED_TRACE(std::to_string(refusals.setup) + ", " + std::to_string(refusals.setups));
    set_ring_refusals(refusals);
    auto opened = open_uring_sink({});
    ASSERT_TRUE(opened) << opened.error().message;
    EXPECT_EQ(ring_refusals_left().setups, 0);
    sink_ = std::move(*opened);
    expect_all_read();
  }
}

TEST_F(RingFaults, ARingThatIsRefusedSaysWhatRefusedIt) {
  for (const auto& [error, said] : {std::pair(ENOMEM, "ENOMEM (RLIMIT_MEMLOCK is "),
                                    {EPERM, "EPERM (kernel.io_uring_disabled"},
                                    {EACCES, "EACCES (kernel.io_uring_disabled"},
                                    {ENOSYS, "ENOSYS (a kernel without io_uring"},
                                    {EMFILE, "EMFILE (too many open files: see ulimit -n)"},
                                    {ENFILE, "ENFILE (too many open files"},
                                    {EINVAL, "EINVAL (Invalid argument)"}}) {
    set_ring_refusals(setting_up(error, kForEver));
    const auto start = Clock::now();
    const auto refused = open_uring_sink({});
    ASSERT_FALSE(refused);
    EXPECT_LT(Clock::now() - start, 5s);
    EXPECT_EQ(refused.error().code, ErrorCode::unsupported);
    EXPECT_NE(refused.error().message.find(std::string("io_uring is not available: ") + said),
              std::string::npos)
        << refused.error().message;
  }
  // Rings that are made and do not work, or cannot be tried.
  set_ring_refusals(entering(EBADR, 1));
  EXPECT_FALSE(open_uring_sink({}));
  RingRefusals refusals;
  refusals.memory = EMFILE;
  refusals.memories = 1;
  set_ring_refusals(refusals);
  const auto untried = open_uring_sink({});
  ASSERT_FALSE(untried);
  EXPECT_NE(untried.error().message.find("could not be tried: a memory file failed with EMFILE"),
            std::string::npos)
      << untried.error().message;
  refusals = {};
  refusals.old_kernel = true;
  set_ring_refusals(refusals);
  const auto old = open_uring_sink({});
  ASSERT_FALSE(old);
  EXPECT_NE(old.error().message.find("ENOSYS"), std::string::npos) << old.error().message;
  refusals = {};
  refusals.other_file = true;
  set_ring_refusals(refusals);
  const auto other = open_uring_sink({});
  ASSERT_FALSE(other);
  EXPECT_NE(other.error().message.find("EILSEQ"), std::string::npos) << other.error().message;
}

TEST_F(RingFaults, ARingThatNeverAnswersIsNotWaitedForLong) {
  set_ring_refusals(entering(ETIME, kForEver));
  const auto start = Clock::now();
  const auto silent = open_uring_sink({});
  ASSERT_FALSE(silent);
  EXPECT_NE(silent.error().message.find("ETIME"), std::string::npos) << silent.error().message;
  EXPECT_LT(Clock::now() - start, 20s);
}

// What a thread takes for its stack where nothing else is said.
class StackSize {
 public:
  explicit StackSize(std::size_t bytes) {
    pthread_attr_t wanted;
    EXPECT_EQ(::pthread_getattr_default_np(&before_), 0);
    EXPECT_EQ(::pthread_attr_init(&wanted), 0);
    EXPECT_EQ(::pthread_attr_setstacksize(&wanted, bytes), 0);
    EXPECT_EQ(::pthread_setattr_default_np(&wanted), 0);
    ::pthread_attr_destroy(&wanted);
  }
  ~StackSize() {
    EXPECT_EQ(::pthread_setattr_default_np(&before_), 0);
    ::pthread_attr_destroy(&before_);
  }
  StackSize(const StackSize&) = delete;
  StackSize& operator=(const StackSize&) = delete;

 private:
  pthread_attr_t before_;
};

TEST_F(RingFaults, WithNeitherRingsNorThreadsBothAreNamed) {
  set_ring_refusals(setting_up(EPERM, kForEver));
  const auto forced = open_sink("uring", {});
  ASSERT_FALSE(forced);
  EXPECT_EQ(forced.error().message,
            "io_uring is not available: EPERM (kernel.io_uring_disabled or a seccomp profile); use "
            "--io-backend threads");
  const StackSize impossible(std::size_t{1} << 46);  // of which there is no room for four
  const std::string threads = "could not start 4 threads for reading, only ";
  const auto none = open_sink("threads", {});
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::exhausted);
  EXPECT_TRUE(none.error().message.starts_with(threads)) << none.error().message;
  const auto neither = open_sink("auto", {});
  ASSERT_FALSE(neither);
  EXPECT_EQ(neither.error().code, ErrorCode::exhausted);
  EXPECT_TRUE(neither.error().message.starts_with("io_uring is not available: EPERM"))
      << neither.error().message;
  EXPECT_NE(neither.error().message.find("; " + threads), std::string::npos)
      << neither.error().message;
}

TEST_F(RingFaults, AnotherThreadThatGetsNoRingIsToldSo) {
  expect_all_read();
  set_ring_refusals(setting_up(EPERM, 1));
  std::thread([&] {
    const Status refused = sink_->submit(reads());
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find("on another thread: io_uring is not available: EPERM"),
              std::string::npos)
        << refused.error().message;
    EXPECT_EQ(sink_->in_flight(), 0u);
  }).join();
  EXPECT_FALSE(sink_->submit(reads()));
}

// A ring whose completions are deferred answers its own thread alone.
TEST_F(RingFaults, AnotherThreadCannotTakeOverWhatIsInFlight) {
  ASSERT_TRUE(sink_->submit(reads()));
  std::thread([&] {
    const Status refused = sink_->submit(reads());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::io);
    EXPECT_NE(refused.error().message.find(" transfers of another thread did not finish"),
              std::string::npos)
        << refused.error().message;
    EXPECT_EQ(sink_->in_flight(), kPages);
  }).join();
  EXPECT_EQ(finish().size(), kPages);
  expect_all_read();
}

TEST_F(RingFaults, MemoryIsKeptOnceThereIsRoomForItAndElseReadsGoOn) {
  for (const auto& [error, times, kept] : {std::tuple(ENOMEM, 1, true),
                                           {ENOMEM, 4, true},
                                           {ENOMEM, kForEver, false},
                                           {EOPNOTSUPP, 1, false}}) {
    SCOPED_TRACE(std::to_string(error) + ", " + std::to_string(times) + " times");
    auto opened = open_uring_sink({});
    ASSERT_TRUE(opened);
    sink_ = std::move(*opened);
    set_ring_refusals(keeping(error, times));
    const auto start = Clock::now();
    EXPECT_EQ(sink_->keep(memory_.bytes()), kept);
    EXPECT_LT(Clock::now() - start, 5s);
    set_ring_refusals({});
    expect_all_read();
    // On another thread there is another ring, which may refuse what the first one took.
    set_ring_refusals(keeping(EOPNOTSUPP, 1));
    std::ranges::fill(memory_.bytes(), std::byte{0});
    std::thread([&] { expect_all_read(); }).join();
    EXPECT_EQ(ring_refusals_left().keeps, kept ? 0 : 1);
    expect_all_read();
  }
  EXPECT_FALSE(sink_->keep({}));
}

TEST_F(RingFaults, AtItsEndItWaitsForWhatTheKernelHasWhateverWaitingAnswers) {
  for (const auto& [error, times] : {std::pair(EINTR, 5), {EAGAIN, 5}, {EBADR, 1}}) {
    auto opened = open_uring_sink({.depth = 16});
    ASSERT_TRUE(opened);
    sink_ = std::move(*opened);
    ASSERT_TRUE(sink_->submit(reads()));
    set_ring_refusals(waiting(error, times));
    const auto start = Clock::now();
    sink_.reset();
    EXPECT_LT(Clock::now() - start, 10s);
    set_ring_refusals({});
    expect_nothing_arrives();
  }
}

}  // namespace
}  // namespace thermocline
