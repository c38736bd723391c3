// A third store, of memory that is not the host tier's by the ledger: what a device's would be to
// whoever keeps rows, in a machine that has none.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "tiers/store/host_memory.h"

namespace thermocline {

class DeviceStandIn final : public Store {
 public:
  // Everything that was taken is given back.
  ~DeviceStandIn() override { EXPECT_EQ(taken_, 0); }
  StoreFacts facts() const override { return {Tier::device, Reach::memory}; }
  const std::string& name() const override {
    static const std::string kName = "stand-in";
    return kName;
  }
  Result<Space> take(std::uint64_t bytes) override {
    TL_TRY_ASSIGN(const Space space, memory_.take(bytes));
    ++taken_;
    return space;
  }
  void give(const Space& space) override {
    memory_.give(space);
    --taken_;
  }
  std::string note() const override { return "rows on the device are in host memory"; }

 private:
  HostMemory memory_;
  int taken_ = 0;
};

}  // namespace thermocline
