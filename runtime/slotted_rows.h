// Rows of one timeline in one layer that a device fetches from elsewhere: its slots for copies of
// them, and whose rows those may be of. A copy is known by its row's number in the timeline's runs,
// one after the other; when runs are joined or cut, numbers from there on are other rows'.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/device_choice.h"
#include "tiers/block.h"

namespace thermocline {

class SlottedRows {
 public:
  SlottedRows() = default;
  // `memory`, the device's: that of each KV head's slots, `apart` bytes from the next; not owned.
  SlottedRows(std::byte* memory, std::uint64_t apart, std::uint32_t slots, std::uint32_t rows)
      : of_first_head_{memory, slots, rows, 0}, apart_(apart) {}

  // For a question about these runs; none where nothing is fetched.
  ListSlots of(std::uint32_t head, std::span<const Run> runs) const;
  // All heads have been asked about these runs, or will be before anything else; or, of what they
  // were asked, it is not known what came of it.
  void remember(std::span<const Run> runs);
  void forget() { segments_.clear(); }
  bool remembers() const { return !segments_.empty(); }
  // Those of `other`, whose slots were copied to these.
  void take_over(const SlottedRows& other) { segments_ = other.segments_; }

 private:
  ListSlots of_first_head_;
  std::uint64_t apart_ = 0;
  std::vector<std::weak_ptr<const Segment>> segments_;  // of the runs that were asked about last
};

}  // namespace thermocline
