#include "tiers/store/pinned_memory.h"

#include "tiers/size_text.h"
#include "tiers/store/device_memory.h"

namespace thermocline {

Result<PinnedMemory> PinnedMemory::open(const std::string& name) {
  TL_TRY_ASSIGN(std::unique_ptr<Device> device, open_named_device(name));
  return PinnedMemory(std::move(device));
}

Result<Space> PinnedMemory::take(std::uint64_t bytes) {
  const Result<std::byte*> memory = device_->take_pinned(bytes);
  if (!memory && memory.error().code == ErrorCode::exhausted)
    return fail(ErrorCode::exhausted, "no ", size_text(bytes), " of host memory to pin for ",
                device_->name(),
                ", which reads rows there: lower -c, or say --method-set place.run=near");
  TL_TRY(memory);
  Space space;
  space.bytes = bytes;
  space.address = *memory;
  ++held_;
  return space;
}

void PinnedMemory::give(const Space& space) {
  TL_CHECK(held_ > 0);
  --held_;
  device_->give_pinned(space.address);
}

}  // namespace thermocline
