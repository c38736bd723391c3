#include "tiers/numa.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

#include "kernels/base/buffer.h"

namespace thermocline {
namespace {

TEST(NumaNodes, AreThoseOfTheProcessors) {
  EXPECT_EQ(NumaNodes::described("numa:1 core:4 pu:1").count(), 1u);
  EXPECT_EQ(NumaNodes::described("numa:2 core:2 pu:2").count(), 2u);
  EXPECT_EQ(NumaNodes::described("group:2 numa:2 core:1 pu:1").count(), 4u);
  EXPECT_EQ(NumaNodes::described("no machine").count(), 0u);
  EXPECT_GE(NumaNodes::of_process().count(), 1u);
}

// The policy of the mapping that holds `address`, as the kernel tells it.
std::string policy_of(const void* address) {
  std::ostringstream first;
  first << std::hex << reinterpret_cast<std::uintptr_t>(address);
  std::ifstream maps("/proc/self/numa_maps");
  for (std::string line; std::getline(maps, line);)
    if (line.rfind(first.str() + " ", 0) == 0) return line;
  return {};
}

NumaNodes as_if_here(const char* machine) {
  ::setenv("HWLOC_THISSYSTEM", "1", 1);
  NumaNodes nodes = NumaNodes::described(machine);
  ::unsetenv("HWLOC_THISSYSTEM");
  return nodes;
}

// Here, as if it had two nodes: what is asked of the kernel is the mask of both, which it cuts to
// those that there are.
TEST(NumaNodes, MemoryIsSpreadOverThemWhereThereAreSeveral) {
  struct Case {
    const char* machine;
    std::size_t bytes;
    bool spread;
  };
  const std::size_t much = std::size_t{4} << 20;
  // What is spread last: freed memory, which others may be given, stays so.
  for (const Case& c :
       {Case{"numa:1 core:2 pu:1", much, false}, Case{"numa:2 core:1 pu:1", 4096, false},
        Case{"numa:2 core:1 pu:1", much, true}}) {
    auto memory = Buffer::create(c.bytes);
    ASSERT_TRUE(memory);
    if (!as_if_here(c.machine).spread(memory->bytes()))
      GTEST_SKIP() << "this kernel refuses to bind memory";
    std::memset(memory->data(), 1, memory->size());
    const std::string policy = policy_of(memory->data());
    if (policy.empty() && c.spread) GTEST_SKIP() << "this kernel has no /proc/self/numa_maps";
    EXPECT_EQ(policy.find("interleave") != std::string::npos, c.spread) << policy;
  }
}

}  // namespace
}  // namespace thermocline
