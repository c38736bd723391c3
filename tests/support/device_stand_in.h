// A third store, of memory that is not the host tier's by the ledger: what a device's would be to
// whoever keeps rows, in a machine that has none.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <map>
#include <string>
#include <utility>

#include "kernels/base/buffer.h"
#include "tiers/store/store.h"

namespace thermocline {

class DeviceStandIn final : public Store {
 public:
  // Everything that was taken is given back.
  ~DeviceStandIn() override { EXPECT_TRUE(held_.empty()); }
  StoreFacts facts() const override { return {Tier::device, Reach::memory}; }
  Result<Space> take(std::uint64_t bytes) override {
    TL_TRY_ASSIGN(Buffer buffer, Buffer::create(bytes));
    Space space;
    space.bytes = bytes;
    space.address = buffer.data();
    held_.emplace(space.address, std::move(buffer));
    return space;
  }
  void give(const Space& space) override { EXPECT_EQ(held_.erase(space.address), 1u); }
  std::string note() const override { return "rows on the device are in host memory"; }

 private:
  std::map<const std::byte*, Buffer> held_;
};

}  // namespace thermocline
