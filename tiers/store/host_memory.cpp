#include "tiers/store/host_memory.h"

#include <utility>

#include "tiers/numa.h"

namespace thermocline {

// Reading the machine takes memory of its own: now, and not in the step that seals first.
HostMemory::HostMemory() { (void)NumaNodes::of_process(); }

Result<Space> HostMemory::take(std::uint64_t bytes) {
  TL_TRY_ASSIGN(Buffer buffer, Buffer::create(bytes));
  (void)NumaNodes::of_process().spread(buffer.bytes());
  Space space;
  space.bytes = bytes;
  space.address = buffer.data();
  held_.emplace(space.address, std::move(buffer));
  return space;
}

void HostMemory::give(const Space& space) { TL_CHECK(held_.erase(space.address) == 1); }

}  // namespace thermocline
