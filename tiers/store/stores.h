// The stores that there are, one a tier at most: which of them a cache has, and what they are like
// before they are opened.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "tiers/store/store.h"
#include "tiers/tier.h"

namespace thermocline {

struct StoreOptions {
  // That each tier may hold. 0: the tier is not there, which host memory always is.
  std::array<std::uint64_t, kTiers> bytes{};
  std::string device = "host";  // whose memory is the device's tier: host memory, or cuda:N
  bool pinned = false;          // whether that device, cuda:N, reads what is in host memory itself
  std::string directory = {};   // of the disk's scratch file
  std::string session = {};     // the disk's file, where it is to be kept; "": a scratch file
  // Of each tier: a store that has not as much refuses to open.
  std::array<PlannedUse, kTiers> planned{};
};

// How what is at home in `tier` will be reached; nothing: no store serves it.
std::optional<Reach> reach_of(const StoreOptions& options, Tier tier);
// Of host memory and the disk, the last one that there is.
Tier lowest_of(const StoreOptions& options);
// Whether there is a store that is reached in pages, which takes a Sink and memory to read into.
bool any_in_pages(const StoreOptions& options);
// Whether there is a store whose rows the host does not reach where they lie: in pages, or on a
// device. They are staged in host memory.
bool any_staged(const StoreOptions& options);

using Stores = std::array<std::unique_ptr<Store>, kTiers>;  // by tier; null: not there
Result<Stores> open_stores(const StoreOptions& options);
// The notes that they would have, or the refusal, with nothing made that stays.
Result<std::vector<std::string>> probe_stores(const StoreOptions& options);

}  // namespace thermocline
