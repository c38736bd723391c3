#include "tiers/row_cache.h"

#include "kernels/base/error.h"

namespace thermocline {

RowCache::RowCache(std::byte* slots, std::uint32_t capacity, std::uint32_t row_bytes)
    : bytes_(slots), capacity_(capacity), row_bytes_(row_bytes), slots_(capacity) {}

void RowCache::grow(std::uint32_t rows) {
  if (capacity_ > 0 && rows > slot_of_row_.size()) slot_of_row_.resize(rows, kNone);
}

const std::byte* RowCache::find(std::uint32_t row) {
  if (capacity_ == 0) return nullptr;
  const std::uint32_t slot = slot_of_row_[row];
  if (slot == kNone) return nullptr;
  slots_[slot].step = step_;
  if (slot != newest_) {
    unlink(slot);
    make_newest(slot);
  }
  return bytes_ + std::size_t{slot} * row_bytes_;
}

std::byte* RowCache::insert(std::uint32_t row) {
  if (capacity_ == 0 || slot_of_row_[row] != kNone) return nullptr;
  std::uint32_t slot;
  if (used_ < capacity_) {
    slot = used_++;
  } else {
    slot = oldest_;
    if (slots_[slot].step == step_) return nullptr;
    if (slots_[slot].row != kNone) {
      slot_of_row_[slots_[slot].row] = kNone;
      --held_;
    }
    unlink(slot);
  }
  slots_[slot].row = row;
  slots_[slot].step = step_;
  slot_of_row_[row] = slot;
  ++held_;
  make_newest(slot);
  return bytes_ + std::size_t{slot} * row_bytes_;
}

void RowCache::forget(std::uint32_t first, std::uint32_t count) {
  if (capacity_ == 0) return;
  for (std::uint32_t row = first; row < first + count; ++row) {
    const std::uint32_t slot = slot_of_row_[row];
    if (slot == kNone) continue;
    slot_of_row_[row] = kNone;
    slots_[slot].row = kNone;
    slots_[slot].step = 0;
    --held_;
    unlink(slot);
    make_oldest(slot);
  }
}

void RowCache::unlink(std::uint32_t slot) {
  Slot& s = slots_[slot];
  (s.newer == kNone ? newest_ : slots_[s.newer].older) = s.older;
  (s.older == kNone ? oldest_ : slots_[s.older].newer) = s.newer;
  s.newer = s.older = kNone;
}

void RowCache::make_newest(std::uint32_t slot) {
  slots_[slot].older = newest_;
  if (newest_ != kNone) slots_[newest_].newer = slot;
  newest_ = slot;
  if (oldest_ == kNone) oldest_ = slot;
}

void RowCache::make_oldest(std::uint32_t slot) {
  slots_[slot].newer = oldest_;
  if (oldest_ != kNone) slots_[oldest_].older = slot;
  oldest_ = slot;
  if (newest_ == kNone) newest_ = slot;
}

}  // namespace thermocline
