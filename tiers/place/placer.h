// place: which tier is a segment's home. Everything above the home is a cached copy.
#pragma once

#include <memory>
#include <string_view>

#include "tiers/tier.h"

namespace thermocline {

// Any thread may use it.
class Placer {
 public:
  virtual ~Placer() = default;
  virtual std::string_view name() const = 0;
  // `lowest`: the lowest tier that this cache was given.
  virtual Tier home(Tier lowest) const = 0;
};

// The lowest tier there is: host memory, or the disk when there is a disk budget.
class HomeLowest final : public Placer {
 public:
  std::string_view name() const override { return "lowest"; }
  Tier home(Tier lowest) const override { return lowest; }
};

class HomeHost final : public Placer {
 public:
  std::string_view name() const override { return "host"; }
  Tier home(Tier) const override { return Tier::host; }
};

}  // namespace thermocline
