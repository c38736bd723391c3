#include "tiers/numa.h"

#include <hwloc.h>

namespace thermocline {

struct NumaNodes::Machine {
  hwloc_topology_t topology = nullptr;
  hwloc_bitmap_t nodes = nullptr;
  ~Machine() {
    hwloc_bitmap_free(nodes);
    if (topology) hwloc_topology_destroy(topology);
  }
};

NumaNodes::NumaNodes() = default;
NumaNodes::NumaNodes(NumaNodes&&) noexcept = default;
NumaNodes::~NumaNodes() = default;

NumaNodes NumaNodes::described(const char* synthetic) {
  NumaNodes found;
  auto machine = std::make_unique<Machine>();
  if (hwloc_topology_init(&machine->topology) != 0) {
    machine->topology = nullptr;
    return found;
  }
  if (synthetic && hwloc_topology_set_synthetic(machine->topology, synthetic) != 0) return found;
  machine->nodes = hwloc_bitmap_alloc();
  hwloc_bitmap_t processors = hwloc_bitmap_alloc();
  if (machine->nodes && processors && hwloc_topology_load(machine->topology) == 0) {
    if (hwloc_get_cpubind(machine->topology, processors, HWLOC_CPUBIND_PROCESS) != 0 ||
        hwloc_bitmap_iszero(processors))
      hwloc_bitmap_copy(processors, hwloc_topology_get_allowed_cpuset(machine->topology));
    hwloc_cpuset_to_nodeset(machine->topology, processors, machine->nodes);
    found.count_ = static_cast<std::size_t>(hwloc_bitmap_weight(machine->nodes));
    found.machine_ = std::move(machine);
  }
  hwloc_bitmap_free(processors);
  return found;
}

const NumaNodes& NumaNodes::of_process() {
  static const NumaNodes nodes = described(nullptr);
  return nodes;
}

bool NumaNodes::spread(std::span<std::byte> memory) const {
  constexpr std::size_t kLeastBytes = std::size_t{1} << 20;  // less is not worth a call
  if (count_ < 2 || memory.size() < kLeastBytes) return true;
  return hwloc_set_area_membind(machine_->topology, memory.data(), memory.size(), machine_->nodes,
                                HWLOC_MEMBIND_INTERLEAVE, HWLOC_MEMBIND_BYNODESET) == 0;
}

}  // namespace thermocline
