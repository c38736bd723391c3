// The device tier of a machine that has none: host memory, which the device's ledger counts. Rows
// that are at home there are reached by address, as a device's would be, and placed, planned,
// counted and refused alike; what it does not show is how fast a device is, or that its memory is
// out of the host's reach.
#pragma once

#include <string>

#include "kernels/base/error.h"
#include "tiers/store/host_memory.h"
#include "tiers/store/store.h"

namespace thermocline {

class DeviceStandIn final : public Store {
 public:
  static constexpr char kDevice[] = "host";  // what StoreOptions calls it
  static constexpr StoreFacts kFacts = {Tier::device, Reach::memory};
  StoreFacts facts() const override { return kFacts; }
  const std::string& name() const override {
    static const std::string kName = "the device's stand-in";
    return kName;
  }
  Result<Space> take(std::uint64_t bytes) override { return memory_.take(bytes); }
  void give(const Space& space) override { memory_.give(space); }
  std::string note() const override { return kNote; }

  static constexpr char kNote[] =
      "rows of the device tier are in host memory that stands in for a GPU's: its speed is not a "
      "GPU's";

 private:
  HostMemory memory_;
};

}  // namespace thermocline
