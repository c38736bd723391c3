#include "tiers/store/host_memory.h"

#include <utility>

namespace thermocline {

Result<Space> HostMemory::take(std::uint64_t bytes) {
  TL_TRY_ASSIGN(Buffer buffer, Buffer::create(bytes));
  Space space;
  space.bytes = bytes;
  space.address = buffer.data();
  held_.emplace(space.address, std::move(buffer));
  return space;
}

void HostMemory::give(const Space& space) { TL_CHECK(held_.erase(space.address) == 1); }

}  // namespace thermocline
