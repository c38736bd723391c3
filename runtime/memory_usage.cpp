#include "runtime/memory_usage.h"

#include <string>

namespace thermocline {

MemoryPlan usage_of(const Budget& budget) {
  MemoryPlan usage;
  for (const Tier tier : kAllTiers) {
    const TierUsage held = budget.usage(tier);
    for (std::size_t p = 0; p < kPurposes; ++p)
      if (held.peak[p] > 0)
        usage.lines.push_back({std::string(name_of(tier)),
                               std::string(name_of(static_cast<Purpose>(p))), held.held[p],
                               held.peak[p]});
    if (held.peak_bytes > 0) usage.peak_bytes[std::string(name_of(tier))] = held.peak_bytes;
  }
  return usage;
}

}  // namespace thermocline
