// The host tier's bytes where a device reads rows of them itself: memory that is pinned for it, a
// piece each time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/device.h"
#include "tiers/store/store.h"

namespace thermocline {

class PinnedMemory final : public Store {
 public:
  static constexpr StoreFacts kFacts = {Tier::host, Reach::memory};

  // For the device of a name that has a device_number(). Errors as open_device() has them.
  static Result<PinnedMemory> open(const std::string& device);
  PinnedMemory(PinnedMemory&& other) noexcept
      : device_(std::move(other.device_)), held_(std::exchange(other.held_, 0)) {}
  ~PinnedMemory() override { TL_CHECK(held_ == 0); }  // a Slot goes before its store

  StoreFacts facts() const override { return kFacts; }
  const std::string& name() const override {
    static const std::string kName = "pinned host memory";
    return kName;
  }
  Result<Space> take(std::uint64_t bytes) override;
  void give(const Space& space) override;

 private:
  explicit PinnedMemory(std::unique_ptr<Device> device) : device_(std::move(device)) {}

  std::unique_ptr<Device> device_;
  std::size_t held_ = 0;  // pieces
};

}  // namespace thermocline
