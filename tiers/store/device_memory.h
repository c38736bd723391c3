// The device tier's bytes: a GPU's memory. Rows are copied there when their segment is adopted, and
// are attended there; what the host is to read of them is copied back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/base/error.h"
#include "kernels/device.h"
#include "tiers/store/store.h"

namespace thermocline {

// Which device a name means: "cuda" is the first, "cuda:N" one of them; nothing: neither is said.
std::optional<std::uint32_t> device_number(std::string_view name);
// Of a name that has one. Errors as open_device() has them.
Result<std::unique_ptr<Device>> open_named_device(const std::string& name);

class DeviceMemory final : public Store {
 public:
  static constexpr StoreFacts kFacts = {Tier::device, Reach::device};

  // `name` has a device_number(). Errors as open_device() has them. exhausted: less memory is free
  // than is planned.
  static Result<DeviceMemory> open(const std::string& name, const PlannedUse& planned);
  DeviceMemory(DeviceMemory&& other) noexcept
      : device_(std::move(other.device_)), held_(std::exchange(other.held_, 0)) {}
  ~DeviceMemory() override { TL_CHECK(held_ == 0); }  // a Slot goes before its store

  StoreFacts facts() const override { return kFacts; }
  const std::string& name() const override { return device_->name(); }
  Result<Space> take(std::uint64_t bytes) override;
  void give(const Space& space) override;
  Device* device() override { return device_.get(); }

 private:
  explicit DeviceMemory(std::unique_ptr<Device> device) : device_(std::move(device)) {}

  std::unique_ptr<Device> device_;
  std::size_t held_ = 0;  // pieces of its memory
};

}  // namespace thermocline
