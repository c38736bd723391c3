// One timeline's rows in one layer: sinks | runs | tail. Only the tail changes from step to step.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/base/buffer.h"
#include "retrieval/select/kept_selection.h"
#include "runtime/slotted_rows.h"
#include "tiers/block.h"
#include "tiers/budget.h"
#include "tiers/store/store.h"

namespace thermocline {

// Raw rows in position order, [heads][capacity] records.
class RawStore {
 public:
  RawStore() = default;
  static Result<RawStore> create(RowLayout layout, std::uint32_t heads, std::uint32_t capacity) {
    RawStore store;
    TL_TRY(store.reshape(layout, heads, capacity));
    return store;
  }
  // To another shape; what it held is lost. Allocates only when it grows.
  Status reshape(RowLayout layout, std::uint32_t heads, std::uint32_t capacity) {
    if (bytes_for(layout, heads, capacity) > bytes_.size()) {
      TL_TRY_ASSIGN(bytes_, Buffer::create(bytes_for(layout, heads, capacity)));
    }
    layout_ = layout;
    heads_ = heads;
    capacity_ = capacity;
    return {};
  }
  static std::uint64_t bytes_for(RowLayout layout, std::uint32_t heads, std::uint32_t capacity) {
    return std::uint64_t{layout.bytes()} * heads * capacity;
  }

  std::uint32_t capacity() const { return capacity_; }
  std::byte* row(std::uint32_t head, std::uint32_t r) const {
    return bytes_.data() + (std::size_t{head} * capacity_ + r) * layout_.bytes();
  }
  // The rows [0, rows), the first of which is at `first_position`.
  RawRows view(std::uint32_t first_position, std::uint32_t rows) const {
    return {layout_, heads_,        first_position,
            rows,    bytes_.data(), std::size_t{capacity_} * layout_.bytes()};
  }
  // Copies `rows` of `from`, from its row `first` on, to the rows from `at` on.
  void copy(const RawRows& from, std::uint32_t first, std::uint32_t rows, std::uint32_t at) const {
    TL_CHECK(at + rows <= capacity_ && first + rows <= from.rows);
    if (rows == 0) return;  // a store without capacity has no memory to point to
    for (std::uint32_t h = 0; h < heads_; ++h)
      std::memmove(row(h, at), from.row(h, first), std::size_t{rows} * layout_.bytes());
  }

 private:
  RowLayout layout_;
  std::uint32_t heads_ = 0, capacity_ = 0;
  Buffer bytes_;
};

// Of one KV head, under a selector that remembers: what the steps that are committed left, and what
// the one in progress leaves.
struct SelectionMemory {
  KeptSelection now, next;
};

// Under a retainer that every step votes for: what each row of a tail got so far, [KV head][the
// tail's capacity] floats, by the steps that are committed, and with the one in progress.
struct TailVotes {
  Buffer now, next;
  bool made = false;  // `next`, by the step in progress
};

struct LayerState {
  RawStore sinks, tail;
  TailVotes votes;  // none where nobody asks
  std::vector<Run> runs;
  std::vector<SelectionMemory> selections;  // by KV head; none where nothing is remembered
  SlottedRows slotted;                      // of `runs`; none where a device fetches none of them
  std::uint32_t tail_first = 0;             // position of the tail's row 0

  // Positions whose rows a run holds, or what is kept of them.
  std::uint32_t positions_of(std::size_t run) const {
    const bool is_last = run + 1 == runs.size();
    return (is_last ? tail_first : runs[run + 1].rows->first_position) -
           runs[run].rows->first_position;
  }
  // Of the tail's first rows, which leave it.
  void forget_votes(std::uint32_t gone) {
    const std::span<float> all = votes.now.as<float>();
    for (std::size_t head = 0; head < all.size(); head += tail.capacity()) {
      const std::span<float> of_head = all.subspan(head, tail.capacity());
      std::ranges::copy(of_head.subspan(gone), of_head.begin());
    }
  }
};

struct TimelineState {
  std::uint32_t length = 0;  // committed positions
  std::vector<LayerState> layers;
  Reservation memory;             // of sinks and tails
  Reservation selections_memory;  // of what is remembered of selections
  Slot slots;                     // on a device, of all layers: SlottedRows

  std::uint32_t tail_rows(const LayerState& layer) const {
    return length > layer.tail_first ? length - layer.tail_first : 0;
  }
};

}  // namespace thermocline
