// A session's file over a system that refuses to look at it, to lock it or to read it: what is
// said, and that the file is as good as before.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <string>
#include <thread>

#include "tests/faults/kernel_faults.h"
#include "tests/support/temporary_folder.h"
#include "tiers/io/descriptor.h"
#include "tiers/io/read_fully.h"
#include "tiers/store/scratch_file.h"
#include "tiers/store/session_file.h"

namespace thermocline {
namespace {

using namespace std::chrono_literals;
constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

class SessionFaults : public ::testing::Test {
 protected:
  SessionFaults() {
    auto made = SessionFile::open(path_, kMiB);
    EXPECT_TRUE(made);
    EXPECT_TRUE(made->publish([](RecordWriter* out) { out->text("held"); }, {}));
  }
  ~SessionFaults() override { set_ring_refusals({}); }

  std::string refusal() const {
    const auto opened = SessionFile::open(path_, kMiB);
    return opened ? "opened" : opened.error().message;
  }
  void expect_as_before() const {
    set_ring_refusals({});
    auto opened = SessionFile::open(path_, kMiB);
    ASSERT_TRUE(opened) << opened.error().message;
    EXPECT_EQ(opened->take_manifest().size(), sizeof(std::uint64_t) + 4);
  }

  const test::TemporaryFolder folder_{"session-faults"};
  const std::string path_ = folder_.path() + "/s.tls";
};

TEST_F(SessionFaults, AFileThatCannotBeLookedAtIsNotOpened) {
  // The first call looks for its owner, the second for its name, the third for its size.
  for (const auto& [before, said] : {std::pair(0, ": could not be looked at: EIO"),
                                     {2, ": could not be asked for its size: EIO"}}) {
    RingRefusals refusals;
    refusals.look = EIO;
    refusals.looks = 1;
    refusals.looks_before = before;
    set_ring_refusals(refusals);
    const std::string heard = refusal();
    EXPECT_NE(heard.find("--session " + path_ + said), std::string::npos) << heard;
    expect_as_before();
  }
}

TEST_F(SessionFaults, AFileThatCannotBeLockedIsNotOpened) {
  RingRefusals refusals;
  refusals.lock = ENOLCK;
  refusals.locks = 1;
  set_ring_refusals(refusals);
  const std::string said = refusal();
  EXPECT_NE(said.find("--session " + path_ + ": could not be locked: ENOLCK"), std::string::npos)
      << said;
  expect_as_before();
}

TEST_F(SessionFaults, AFileThatCannotBeReadIsNotOpened) {
  {
    KernelFaultPlan plan;
    plan.always = KernelFault::io_error;
    const KernelFaults faults(plan);
    const std::string said = refusal();
    EXPECT_NE(said.find("--session " + path_ + ": reading it failed: EIO"), std::string::npos)
        << said;
    // Past the page cache, and through it.
    EXPECT_EQ(faults.counts()[KernelFault::io_error], 2u);
  }
  expect_as_before();
}

// Of a filesystem whose pieces are not pages: what it says of them, and a note where they are not
// to be had.
TEST_F(SessionFaults, OnlyWholePagesAreReadPastThePageCache) {
  const auto is_direct = [&](const std::string& path, std::string* note) {
    const auto opened = SessionFile::open(path, kMiB);
    EXPECT_TRUE(opened) << opened.error().message;
    *note = opened->note();
    return (::fcntl(opened->descriptor(), F_GETFL) & O_DIRECT) != 0;
  };
  std::string note;
  if (!is_direct(path_, &note)) GTEST_SKIP() << note;
  const std::string other = folder_.path() + "/other.tls";
  struct Case {
    std::uint32_t memory, offset;
    bool direct;
  };
  for (const Case& c :
       {Case{512, 512, true}, Case{4, 512, true}, Case{4096, 4096, true}, Case{512, 16384, false},
        Case{65536, 512, false}, Case{512, 3072, false}, Case{0, 0, false}, Case{0, 512, false}}) {
    SCOPED_TRACE(std::to_string(c.memory) + " " + std::to_string(c.offset));
    RingRefusals refusals;
    refusals.direct_memory = c.memory;
    refusals.direct_offset = c.offset;
    refusals.asks = 1 << 20;
    set_ring_refusals(refusals);
    for (const std::string& path : {path_, other}) {  // one that is there, and a new one
      EXPECT_EQ(is_direct(path, &note), c.direct) << path;
      EXPECT_EQ(note.find("cannot be read past the page cache") != std::string::npos, !c.direct)
          << note;
    }
    const auto scratch = ScratchFile::create(folder_.path(), kMiB);
    ASSERT_TRUE(scratch) << scratch.error().message;
    EXPECT_EQ(scratch->direct(), c.direct);
    EXPECT_EQ(scratch->note().empty(), c.direct) << scratch->note();
  }
  expect_as_before();
}

TEST_F(SessionFaults, AFileThatIsNotAnsweredForIsNotWaitedForLong) {
  const Descriptor file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  std::array<std::byte, kPageBytes> page{};
  const auto start = std::chrono::steady_clock::now();
  {
    KernelFaultPlan plan;
    plan.always = KernelFault::late;
    plan.late = 400ms;
    const KernelFaults faults(plan);
    const Status hung = read_fully(file.number(), "it", kPageBytes, page, 20ms);
    ASSERT_FALSE(hung);
    EXPECT_EQ(hung.error().code, ErrorCode::io);
    EXPECT_EQ(hung.error().message,
              "it: a read of 4096 bytes at 4096 did not finish within 20 ms: the disk does not "
              "answer");
    EXPECT_LT(std::chrono::steady_clock::now() - start, 400ms);
    // What it answers in the end is nobody's.
    std::this_thread::sleep_for(start + 600ms - std::chrono::steady_clock::now());
    EXPECT_EQ(page, (std::array<std::byte, kPageBytes>{}));
  }
  EXPECT_TRUE(read_fully(file.number(), "it", kPageBytes, page, 20s));
  EXPECT_NE(page, (std::array<std::byte, kPageBytes>{})) << "the first generation's header";
}

}  // namespace
}  // namespace thermocline
