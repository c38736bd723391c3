#include "runtime/slotted_rows.h"

#include <algorithm>

namespace thermocline {
namespace {

// Not by address, which the next segment may have when one is gone.
bool same(const std::weak_ptr<const Segment>& one, const Run& run) {
  return !one.owner_before(run.rows) && !run.rows.owner_before(one);
}

}  // namespace

ListSlots SlottedRows::of(std::uint32_t head, std::span<const Run> runs) const {
  ListSlots slots = of_first_head_;
  if (slots.memory == nullptr) return slots;
  slots.memory += head * apart_;
  for (std::size_t i = 0; i < std::min(segments_.size(), runs.size()); ++i) {
    if (!same(segments_[i], runs[i])) break;
    slots.kept += runs[i].rows->blocks() * kBlockRows;
  }
  return slots;
}

void SlottedRows::remember(std::span<const Run> runs) {
  if (of_first_head_.memory == nullptr) return;
  if (std::ranges::equal(segments_, runs, same)) return;
  segments_.clear();
  for (const Run& run : runs) segments_.emplace_back(run.rows);
}

}  // namespace thermocline
