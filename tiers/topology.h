// What of the machine this process may use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/base/error.h"

namespace thermocline {

struct Topology {
  std::size_t cores = 0;    // physical cores that this process may run on, at least 1
  std::size_t threads = 0;  // hardware threads of them, cut to the cgroup's share of processor time
  std::size_t numa_nodes = 1;
  std::uint64_t memory_bytes = 0;     // of the machine, or the cgroup's limit where that is lower
  std::uint64_t available_bytes = 0;  // what can still be had without swapping
  bool memory_limited = false;        // a cgroup limits it
  std::uint64_t l2_bytes = 0, l3_bytes = 0;  // one cache of each level; 0: none, or not known

  // "2 cores, 2 threads, 1 NUMA node, 23.5 GiB memory (21.0 GiB available), L2 2 MiB, L3 105 MiB"
  std::string text() const;
};

// Where the kernel tells; other folders in tests.
struct SystemFolders {
  std::string proc = "/proc";
  std::string cgroup = "/sys/fs/cgroup";
};

// Control groups v1 and v2, limits of the ancestors included. io: the machine could not be read.
Result<Topology> read_topology(const SystemFolders& folders = {});

}  // namespace thermocline
