// One timeline's rows in one layer: sinks | runs | tail. Only the tail changes from step to step.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "kernels/base/buffer.h"
#include "retrieval/select/kept_selection.h"
#include "runtime/raw_store.h"
#include "runtime/slotted_rows.h"
#include "runtime/tail_there.h"
#include "tiers/block.h"
#include "tiers/budget.h"
#include "tiers/store/store.h"

namespace thermocline {

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
  TailThere there;                          // of sinks and tail; none where the host attends them
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
  Slot slots, tails;              // on a device, of all layers: SlottedRows, TailThere

  std::uint32_t tail_rows(const LayerState& layer) const {
    return length > layer.tail_first ? length - layer.tail_first : 0;
  }
};

}  // namespace thermocline
