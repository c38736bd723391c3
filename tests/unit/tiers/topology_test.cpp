#include "tiers/topology.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/support/temporary_folder.h"
#include "tiers/size_text.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

// A made-up /proc and /sys/fs/cgroup.
class Machine {
 public:
  Machine() {
    write("proc/meminfo", "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\n");
  }

  Machine& write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + "/" + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
    return *this;
  }
  Topology read() const {
    const auto found = read_topology({.proc = root_ + "/proc", .cgroup = root_ + "/cgroup"});
    EXPECT_TRUE(found) << found.error().message;
    return found.value_or(Topology{});
  }
  std::string folder() const { return root_; }

 private:
  const test::TemporaryFolder temporary_{"topology"};
  const std::string root_ = temporary_.path();
};

TEST(Topology, ReadsThisMachine) {
  const auto found = read_topology();
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_GE(found->cores, 1u);
  EXPECT_GE(found->threads, found->cores);
  EXPECT_LE(found->threads, std::max(1u, std::thread::hardware_concurrency()));
  EXPECT_GE(found->numa_nodes, 1u);
  EXPECT_GT(found->memory_bytes, 64 * kMiB);
  EXPECT_GT(found->available_bytes, 0u);
  EXPECT_LE(found->available_bytes, found->memory_bytes);
  EXPECT_EQ(found->text().find('\n'), std::string::npos);
  EXPECT_NE(found->text().find(" available)"), std::string::npos);
  std::cout << "this machine: " << found->text() << "\n";
}

TEST(Topology, WithoutGroupsTheMachineCounts) {
  const Topology found = Machine().read();
  EXPECT_EQ(found.memory_bytes, 8192 * kMiB);
  EXPECT_EQ(found.available_bytes, 4096 * kMiB);
  EXPECT_FALSE(found.memory_limited);
}

TEST(Topology, TheTightestAncestorOfAGroupLimits) {
  Machine machine;
  machine.write("proc/self/cgroup", "0::/user/job\n")
      .write("cgroup/user/job/memory.max", "max\n")
      .write("cgroup/user/memory.max", std::to_string(2048 * kMiB))
      .write("cgroup/user/memory.current", std::to_string(1536 * kMiB))
      .write("cgroup/user/memory.stat", "anon 5\ninactive_file " + std::to_string(512 * kMiB))
      .write("cgroup/user/job/cpu.max", "max 100000\n")
      .write("cgroup/user/cpu.max", "100000 100000\n");
  const Topology found = machine.read();
  EXPECT_EQ(found.memory_bytes, 2048 * kMiB);
  EXPECT_EQ(found.available_bytes, 1024 * kMiB);
  EXPECT_TRUE(found.memory_limited);
  EXPECT_EQ(found.threads, 1u);
  EXPECT_EQ(found.cores, 1u);
  EXPECT_NE(found.text().find("2 GiB memory by its cgroup (1 GiB available)"), std::string::npos)
      << found.text();
}

TEST(Topology, VersionOneGroupsLimitToo) {
  Machine machine;
  machine.write("proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/\n")
      .write("cgroup/memory/memory.limit_in_bytes", std::to_string(1024 * kMiB))
      .write("cgroup/memory/memory.usage_in_bytes", std::to_string(2048 * kMiB))
      .write("cgroup/cpu/cpu.cfs_quota_us", "-1\n")
      .write("cgroup/cpu/cpu.cfs_period_us", "100000\n");
  const Topology found = machine.read();
  EXPECT_EQ(found.memory_bytes, 1024 * kMiB);
  EXPECT_EQ(found.available_bytes, 0u);
}

TEST(Topology, NonsenseIsIgnoredAndAMissingMeminfoIsAnError) {
  Machine machine;
  machine.write("proc/self/cgroup", "nonsense\n::\n0::/a/../..\n4:memory:relative\n")
      .write("cgroup/memory.max", "-17\n")
      .write("cgroup/cpu.max", "0 0\n");
  EXPECT_EQ(machine.read().memory_bytes, 8192 * kMiB);
  machine.write("proc/meminfo", "MemTotal: lots\n");
  const auto refused = read_topology({.proc = machine.folder() + "/proc", .cgroup = ""});
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("meminfo"), std::string::npos);
}

// hwloc reads the machine from where this variable says, if it does.
TEST(Topology, AMachineThatCannotBeReadIsAnError) {
  Machine machine;
  const std::string nonsense = machine.folder() + "/machine.xml";
  machine.write("machine.xml", "<?xml version=\"1.0\"?><topology version=\"2.0\"></topology>");
  ASSERT_EQ(::setenv("HWLOC_XMLFILE", nonsense.c_str(), 1), 0);
  const auto refused = read_topology();
  ASSERT_EQ(::unsetenv("HWLOC_XMLFILE"), 0);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::io);
  EXPECT_EQ(refused.error().message, "hwloc could not read this machine's topology");
}

TEST(Topology, AffinityLimitsTheThreads) {
  const pid_t child = ::fork();
  if (child == 0) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (::sched_getaffinity(0, sizeof(allowed), &allowed) != 0) ::_exit(3);
    int first = 0;
    while (!CPU_ISSET(first, &allowed)) ++first;
    CPU_ZERO(&allowed);
    CPU_SET(first, &allowed);
    if (::sched_setaffinity(0, sizeof(allowed), &allowed) != 0) ::_exit(3);
    const auto found = read_topology();
    ::_exit(found && found->threads == 1 && found->cores == 1 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 3) GTEST_SKIP() << "this process may not set its affinity";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(SizeText, ReadsAsPeopleWrite) {
  EXPECT_EQ(size_text(0), "0 bytes");
  EXPECT_EQ(size_text(1), "1 byte");
  EXPECT_EQ(size_text(1023), "1023 bytes");
  EXPECT_EQ(size_text(1024), "1 KiB");
  EXPECT_EQ(size_text(1536), "1.50 KiB");
  EXPECT_EQ(size_text(3 << 20), "3 MiB");
  EXPECT_EQ(size_text(std::uint64_t{5} << 40), "5 TiB");
  EXPECT_EQ(size_text(~std::uint64_t{0}), "16777216.00 TiB");
}

}  // namespace
}  // namespace thermocline
