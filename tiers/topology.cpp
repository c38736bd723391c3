#include "tiers/topology.h"

#include <hwloc.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>

#include "tiers/size_text.h"

namespace thermocline {
namespace {

struct Destroy {
  void operator()(hwloc_topology* machine) const { hwloc_topology_destroy(machine); }
  void operator()(hwloc_bitmap_s* set) const { hwloc_bitmap_free(set); }
};
using Machine = std::unique_ptr<hwloc_topology, Destroy>;
using CpuSet = std::unique_ptr<hwloc_bitmap_s, Destroy>;

std::optional<std::uint64_t> number(const std::string& text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end == text.data()) return std::nullopt;
  return value;
}

std::optional<std::uint64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  if (!(file >> word)) return std::nullopt;
  return number(word);  // "max" is none
}

// The number behind `key` in a file of lines "key number".
std::optional<std::uint64_t> number_after(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name, value;
    if (words >> name >> value && name == key) return number(value);
  }
  return std::nullopt;
}

// This process's folder in a hierarchy: v2's ("0::/path") for an empty controller, else v1's.
std::optional<std::string> group_of(const SystemFolders& folders, const std::string& controller) {
  std::ifstream file(folders.proc + "/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = "," + line.substr(first + 1, second - first - 1) + ",";
    if (names == ",," ? controller.empty()
                      : names.find("," + controller + ",") != std::string::npos)
      return line.substr(second + 1);
  }
  return std::nullopt;
}

// Calls visit(folder) for the group and each of its ancestors. Inside a container the path may be
// the host's and not exist here; then only the ancestors that do exist count, as they should.
template <typename Visit>
void for_each_group(const std::string& root, std::string group, const Visit& visit) {
  while (group.size() > 1 && group.front() == '/') {
    visit(root + group);
    group.resize(group.find_last_of('/'));
  }
  visit(root);
}

struct MemoryFiles {
  const char *limit, *used, *cache;
};

void limit_memory(const std::string& root, const std::string& group, const MemoryFiles& names,
                  Topology* found) {
  const std::uint64_t machine_bytes = found->memory_bytes;
  for_each_group(root, group, [&](const std::string& folder) {
    const auto limit = number_in(folder + "/" + names.limit);
    if (!limit || *limit >= machine_bytes) return;
    found->memory_bytes = std::min(found->memory_bytes, *limit);
    found->memory_limited = true;
    // Cached files count as used and are given up when memory is needed.
    const std::uint64_t used = number_in(folder + "/" + names.used).value_or(0);
    const std::uint64_t cache = number_after(folder + "/memory.stat", names.cache).value_or(0);
    const std::uint64_t kept = std::min(used - std::min(used, cache), *limit);
    found->available_bytes = std::min(found->available_bytes, *limit - kept);
  });
}

void limit_threads(std::uint64_t quota, std::uint64_t period, Topology* found) {
  if (period == 0) return;
  const std::size_t share = std::max<std::uint64_t>(1, (quota + period - 1) / period);
  found->threads = std::min(found->threads, share);
  found->cores = std::min(found->cores, share);
}

void read_limits(const SystemFolders& folders, Topology* found) {
  if (const auto group = group_of(folders, "")) {
    limit_memory(folders.cgroup, *group, {"memory.max", "memory.current", "inactive_file"}, found);
    for_each_group(folders.cgroup, *group, [&](const std::string& folder) {
      std::ifstream file(folder + "/cpu.max");
      std::string quota;
      std::uint64_t period = 0;
      if (file >> quota >> period)
        if (const auto microseconds = number(quota)) limit_threads(*microseconds, period, found);
    });
  }
  if (const auto group = group_of(folders, "memory"))
    limit_memory(folders.cgroup + "/memory", *group,
                 {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"}, found);
  if (const auto group = group_of(folders, "cpu"))
    for_each_group(folders.cgroup + "/cpu", *group, [&](const std::string& folder) {
      const auto quota = number_in(folder + "/cpu.cfs_quota_us");  // -1 is none
      const auto period = number_in(folder + "/cpu.cfs_period_us");
      if (quota && period) limit_threads(*quota, *period, found);
    });
}

std::uint64_t cache_bytes(hwloc_topology* machine, hwloc_obj_type_t type) {
  const hwloc_obj_t cache = hwloc_get_obj_by_type(machine, type, 0);
  return cache ? cache->attr->cache.size : 0;
}

}  // namespace

std::string Topology::text() const {
  std::ostringstream out;
  out << cores << (cores == 1 ? " core, " : " cores, ") << threads
      << (threads == 1 ? " thread, " : " threads, ") << numa_nodes
      << (numa_nodes == 1 ? " NUMA node, " : " NUMA nodes, ") << size_text(memory_bytes)
      << " memory" << (memory_limited ? " by its cgroup" : "") << " (" << size_text(available_bytes)
      << " available)";
  if (l2_bytes > 0) out << ", L2 " << size_text(l2_bytes);
  if (l3_bytes > 0) out << ", L3 " << size_text(l3_bytes);
  return out.str();
}

Result<Topology> read_topology(const SystemFolders& folders) {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0)
    return fail(ErrorCode::io, "hwloc could not be started on this machine");
  const Machine machine(raw);
  // Processors that a cpuset forbids are not shown.
  if (hwloc_topology_load(raw) != 0)
    return fail(ErrorCode::io, "hwloc could not read this machine's topology");
  const CpuSet bound(hwloc_bitmap_alloc());
  if (!bound || hwloc_get_cpubind(raw, bound.get(), HWLOC_CPUBIND_PROCESS) != 0 ||
      hwloc_bitmap_iszero(bound.get()))
    hwloc_bitmap_copy(bound.get(), hwloc_topology_get_allowed_cpuset(raw));

  Topology found;
  const auto count = [&](hwloc_obj_type_t type) {
    std::size_t usable = 0;
    for (hwloc_obj_t object = nullptr; (object = hwloc_get_next_obj_by_type(raw, type, object));)
      usable += hwloc_bitmap_intersects(object->cpuset, bound.get()) ? 1 : 0;
    return usable;
  };
  found.threads = std::max<std::size_t>(1, count(HWLOC_OBJ_PU));
  // Some virtual machines show no cores, only threads.
  const std::size_t cores = count(HWLOC_OBJ_CORE);
  found.cores = cores == 0 ? found.threads : cores;
  found.numa_nodes = std::max(1, hwloc_get_nbobjs_by_type(raw, HWLOC_OBJ_NUMANODE));
  found.l2_bytes = cache_bytes(raw, HWLOC_OBJ_L2CACHE);
  found.l3_bytes = cache_bytes(raw, HWLOC_OBJ_L3CACHE);

  const std::string meminfo = folders.proc + "/meminfo";
  const auto total = number_after(meminfo, "MemTotal:");
  const auto available = number_after(meminfo, "MemAvailable:");
  if (!total || !available)
    return fail(ErrorCode::io, meminfo, " tells no MemTotal or no MemAvailable");
  found.memory_bytes = *total * 1024;
  found.available_bytes = *available * 1024;
  read_limits(folders, &found);
  return found;
}

}  // namespace thermocline
