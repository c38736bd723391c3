// place: which tier is a segment's home. Everything above the home is a cached copy.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "tiers/tier.h"

namespace thermocline {

// The tiers that a cache was given, before one of its layers is at home somewhere.
struct Homes {
  Tier lowest = Tier::host;        // of host memory and the disk
  std::uint64_t device_bytes = 0;  // that nothing is planned for yet
};

// Any thread may use it.
class Placer {
 public:
  virtual ~Placer() = default;
  virtual std::string_view name() const = 0;
  // Of the sealed rows of a layer, `bytes` at most. Asked for one layer after the other, when a
  // cache is planned.
  virtual Tier home(const Homes& homes, std::uint64_t bytes) const = 0;
};

// The device as long as whole layers fit into it, and then the lowest tier there is: what is on the
// device is attended there, and what is not is found by the same selection elsewhere.
class HomeSpill final : public Placer {
 public:
  std::string_view name() const override { return "spill"; }
  Tier home(const Homes& homes, std::uint64_t bytes) const override {
    return bytes <= homes.device_bytes ? Tier::device : homes.lowest;
  }
};

// The lowest tier there is: host memory, or the disk when there is a disk budget.
class HomeLowest final : public Placer {
 public:
  std::string_view name() const override { return "lowest"; }
  Tier home(const Homes& homes, std::uint64_t) const override { return homes.lowest; }
};

class HomeHost final : public Placer {
 public:
  std::string_view name() const override { return "host"; }
  Tier home(const Homes&, std::uint64_t) const override { return Tier::host; }
};

}  // namespace thermocline
