#include "tiers/store/device_memory.h"

#include <charconv>

#include "tiers/size_text.h"

namespace thermocline {

std::optional<std::uint32_t> device_number(std::string_view name) {
  constexpr std::string_view kCuda = "cuda";
  if (name == kCuda) return 0;
  if (!name.starts_with(kCuda) || name.substr(kCuda.size(), 1) != ":") return std::nullopt;
  name.remove_prefix(kCuda.size() + 1);
  std::uint32_t number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  if (error != std::errc() || end != name.data() + name.size()) return std::nullopt;
  return number;
}

Result<std::unique_ptr<Device>> open_named_device(const std::string& name) {
  const std::optional<std::uint32_t> number = device_number(name);
  TL_CHECK(number.has_value());
  return open_device(*number);
}

Result<DeviceMemory> DeviceMemory::open(const std::string& name, const PlannedUse& planned) {
  TL_TRY_ASSIGN(std::unique_ptr<Device> device, open_named_device(name));
  TL_TRY_ASSIGN(const std::uint64_t free, device->free_bytes());
  if (planned.bytes > free)
    return fail(ErrorCode::exhausted, device->name(), ": ", planned.positions, " positions need ",
                size_text(planned.bytes), " of its memory, which has ", size_text(free),
                " free: lower --kv-device");
  return DeviceMemory(std::move(device));
}

Result<Space> DeviceMemory::take(std::uint64_t bytes) {
  const Result<std::byte*> memory = device_->take(bytes);
  if (!memory && memory.error().code == ErrorCode::exhausted)
    return fail(ErrorCode::exhausted, name(), ": no ", size_text(bytes), " in one piece, of which ",
                size_text(device_->free_bytes().value_or(0)), " are free: lower --kv-device");
  TL_TRY(memory);
  Space space;
  space.bytes = bytes;
  space.address = *memory;
  ++held_;
  return space;
}

void DeviceMemory::give(const Space& space) {
  TL_CHECK(held_ > 0);
  --held_;
  device_->give(space.address);
}

}  // namespace thermocline
