// The host tier's bytes: plain memory, a buffer each time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "kernels/base/buffer.h"
#include "kernels/base/error.h"
#include "tiers/store/store.h"

namespace thermocline {

class HostMemory final : public Store {
 public:
  HostMemory();
  ~HostMemory() override { TL_CHECK(held_.empty()); }  // a Slot goes before its store
  static constexpr StoreFacts kFacts = {Tier::host, Reach::memory};
  StoreFacts facts() const override { return kFacts; }
  const std::string& name() const override {
    static const std::string kName = "host memory";
    return kName;
  }
  Result<Space> take(std::uint64_t bytes) override;
  void give(const Space& space) override;

 private:
  std::map<const std::byte*, Buffer> held_;
};

}  // namespace thermocline
