// Machines that refuse io_uring, made by limiting a child process: what is said, and what runs
// then.
#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <functional>
#include <string>

#include "kernels/base/buffer.h"
#include "tiers/io/descriptor.h"
#include "tiers/io/sink.h"

namespace thermocline {
namespace {

// What `speak` returns in a child process after `limit`, which may be hard to undo. Ends with
// "died" if the child did not come to its end.
std::string in_child(const std::function<bool()>& limit,
                     const std::function<std::string()>& speak) {
  std::array<int, 2> ends{-1, -1};
  if (::pipe(ends.data()) != 0) return "no pipe";
  Descriptor ear(ends[0]), mouth(ends[1]);
  const pid_t child = ::fork();
  if (child == 0) {
    const std::string said = limit() ? speak() : "could not be limited";
    const bool whole =
        ::write(mouth.number(), said.data(), said.size()) == static_cast<ssize_t>(said.size());
    ::_exit(whole ? 0 : 1);
  }
  mouth = Descriptor();
  std::string heard;
  std::array<char, 512> part;
  for (ssize_t count; (count = ::read(ear.number(), part.data(), part.size())) > 0;)
    heard.append(part.data(), static_cast<std::size_t>(count));
  int status = 0;
  if (::waitpid(child, &status, 0) != child || status != 0) heard += " died";
  return heard;
}

// "name | note" of the Sink that was opened, after it has read a page; or the error.
std::string open_and_read(const std::string& backend) {
  auto opened = open_sink(backend, {});
  if (!opened) return "error: " + opened.error().message;
  Descriptor zeros(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  std::array<std::byte, 4096> page;
  page.fill(std::byte{1});
  const Transfer read{.file = zeros.number(), .bytes = page, .tag = 1};
  Completion done{.tag = 0, .error = -1};
  if (!opened->sink->submit({&read, 1})) return "submit failed";
  const auto count =
      opened->sink->poll({&done, 1}, std::chrono::steady_clock::now() + std::chrono::seconds(10));
  if (!count || *count != 1 || done.error != 0 || page[4095] != std::byte{0}) return "read failed";
  return std::string(opened->sink->name()) + " | " + opened->note;
}

bool refuse_io_uring_setup(int error) {
  const std::array<sock_filter, 4> filter = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog program{.len = filter.size(), .filter = const_cast<sock_filter*>(filter.data())};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// As a user who may lock `bytes` of memory.
bool unprivileged(rlim_t bytes) {
  const rlimit limit{.rlim_cur = bytes, .rlim_max = bytes};
  if (::setrlimit(RLIMIT_MEMLOCK, &limit) != 0) return false;
  if (::geteuid() != 0) return true;
  constexpr uid_t kNobody = 65534;
  return ::setgroups(0, nullptr) == 0 && ::setgid(kNobody) == 0 && ::setuid(kNobody) == 0;
}

TEST(SinkRefusal, SeccompIsNamedAndAutoFallsBack) {
  for (const auto& [error, cause] :
       {std::pair<int, std::string>{
            EPERM,
            "io_uring is not available: EPERM (kernel.io_uring_disabled or a seccomp profile)"},
        {ENOSYS,
         "io_uring is not available: ENOSYS (a kernel without io_uring, or a seccomp "
         "profile)"}}) {
    const int number = error;
    const auto limit = [number] { return refuse_io_uring_setup(number); };
    EXPECT_EQ(in_child(limit, [] { return open_and_read("uring"); }),
              "error: " + cause + "; use --io-backend threads");
    EXPECT_EQ(in_child(limit, [] { return open_and_read("auto"); }),
              "threads | " + cause + "; the disk is read by threads instead");
    EXPECT_EQ(in_child(limit, [] { return open_and_read("threads"); }), "threads | ");
  }
}

TEST(SinkRefusal, NoLockedMemoryFallsBackOrRuns) {
  const auto limit = [] { return unprivileged(0); };
  const std::string forced = in_child(limit, [] { return open_and_read("uring"); });
  const std::string chosen = in_child(limit, [] { return open_and_read("auto"); });
  if (forced == "uring | ") {  // kernels that charge rings to the control group
    EXPECT_EQ(chosen, "uring | ");
    return;
  }
  const std::string cause =
      forced.starts_with("error: io_uring is not available: EPERM")
          ? "io_uring is not available: EPERM (kernel.io_uring_disabled or a "
            "seccomp profile)"
          : "io_uring is not available: ENOMEM (RLIMIT_MEMLOCK is 0 bytes: see "
            "ulimit -l)";
  EXPECT_EQ(forced, "error: " + cause + "; use --io-backend threads");
  EXPECT_EQ(chosen, "threads | " + cause + "; the disk is read by threads instead");
}

TEST(SinkRefusal, ALittleLockedMemoryIsEnoughForASmallerRing) {
  // 64 KiB is an old default. A depth of 4096 would need 400 KiB: the ring is made smaller.
  const std::string said =
      in_child([] { return unprivileged(64 << 10); },
               [] {
                 auto opened = open_sink("auto", {.depth = 4096});
                 return opened ? std::string(opened->sink->name()) + " | " + opened->note
                               : opened.error().message;
               });
  if (said.find("EPERM") != std::string::npos || said.find("ENOSYS") != std::string::npos)
    GTEST_SKIP() << said;
  EXPECT_EQ(said, "uring | ");
}

// "name kept|loose" of a ring that was asked to keep `bytes`, `times` after each other without a
// pause, and has then read a page into that memory.
std::string keep_and_read(std::size_t bytes, int times) {
  std::string said;
  for (int i = 0; i < times; ++i) {
    auto memory = Buffer::create(bytes);
    auto opened = open_sink("uring", {});
    if (!memory || !opened) return opened ? "no memory" : opened.error().message;
    const bool kept = opened->sink->keep(memory->bytes());
    const std::string one = std::string(opened->sink->name()) + (kept ? " kept" : " loose");
    if (i > 0 && one != said) return said + ", then " + one + " at " + std::to_string(i);
    said = one;
    Descriptor zeros(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
    memory->bytes()[4095] = std::byte{1};
    const Transfer read{.file = zeros.number(), .bytes = memory->bytes().first(4096)};
    Completion done{.tag = 0, .error = -1};
    if (!opened->sink->submit({&read, 1})) return "submit failed";
    const auto count =
        opened->sink->poll({&done, 1}, std::chrono::steady_clock::now() + std::chrono::seconds(10));
    if (!count || *count != 1 || done.error != 0 || memory->bytes()[4095] != std::byte{0})
      return "read failed: " + std::to_string(done.error);
  }
  return said;
}

TEST(SinkRefusal, MemoryThatMayNotBeLockedIsReadIntoAllTheSame) {
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  const auto limit = [] { return unprivileged(8 * kMiB); };
  const std::string fits = in_child(limit, [] { return keep_and_read(6 * kMiB, 20); });
  if (fits.find("io_uring is not available") != std::string::npos) GTEST_SKIP() << fits;
  // Each time the last ring's memory has to come back first.
  EXPECT_EQ(fits, "uring kept");
  EXPECT_EQ(in_child(limit, [] { return keep_and_read(16 * kMiB, 2); }), "uring loose");
}

// Of a kernel's own count, in KiB.
std::uint64_t pinned_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (std::uint64_t kib = 0; word == "VmPin:" && status >> kib) return kib;
  return 0;
}

TEST(SinkRefusal, OfMemoryThatMayNotBeLockedAPartIs) {
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  const auto pinned_of = [](std::size_t bytes) {
    return in_child([] { return unprivileged(8 * kMiB); },
                    [bytes] {
                      const auto memory = Buffer::create(bytes);
                      const auto opened = open_sink("uring", {});
                      if (!memory || !opened)
                        return opened ? std::string("no memory") : opened.error().message;
                      const bool all = opened->sink->keep(memory->bytes());
                      const std::uint64_t mib = pinned_kib() / 1024;
                      return std::string(all ? "all: " : "a part: ") +
                             (mib >= 4 && mib <= 8 ? "4 to 8 MiB" : std::to_string(mib) + " MiB");
                    });
  };
  const std::string fits = pinned_of(6 * kMiB);
  if (fits.find("io_uring is not available") != std::string::npos) GTEST_SKIP() << fits;
  EXPECT_EQ(fits, "all: 4 to 8 MiB");
  for (const std::size_t bytes : {9 * kMiB, 16 * kMiB, 64 * kMiB})
    EXPECT_EQ(pinned_of(bytes), "a part: 4 to 8 MiB") << bytes;
}

TEST(SinkRefusal, ThreadsThatTheSystemRefusesAreAnErrorThatCountsThem) {
  const auto limit = [] {
    const rlimit none{.rlim_cur = 0, .rlim_max = 0};
    return ::setrlimit(RLIMIT_NPROC, &none) == 0 && unprivileged(8 << 20);
  };
  const std::string said = in_child(limit, [] { return open_and_read("threads"); });
  if (said.starts_with("threads")) GTEST_SKIP() << "this user's threads are not limited here";
  EXPECT_TRUE(said.starts_with("error: could not start 4 threads for reading, only 0: ")) << said;
}

}  // namespace
}  // namespace thermocline
