#include "kernels/cuda/choice_work.h"

#include <algorithm>

#include "kernels/device.h"

namespace thermocline::cuda {
namespace {

// Whose tables are cut from a list's own memory, which is on the device too.
RowSlots cut_slots(const ListSlots& slots, std::uint32_t row_bytes) {
  RowSlots cache{.slots = slots.slots, .rows = slots.rows, .kept = slots.kept};
  Pieces pieces(slots.memory);
  pieces.take(std::size_t{slots.slots} * row_bytes, &cache.records);
  pieces.take(slots.rows, &cache.slot_of);
  pieces.take(slots.slots, &cache.row_of);
  pieces.take(slots.slots, &cache.used);
  pieces.take(1, &cache.hand);
  TL_CHECK(pieces.bytes() == slot_bytes(slots.slots, slots.rows, row_bytes));
  return cache;
}

std::uint32_t whole_blocks(std::uint32_t rows) { return blocks_of(rows) * kBlockRows; }

}  // namespace

void cut_states(HeadShape shape, std::size_t states, Pieces* from, States* of) {
  from->take(states * shape.heads, &of->max);
  from->take(states * shape.heads, &of->sum);
  from->take(states * shape.heads * shape.value_dim, &of->acc);
}

ChoiceWork::ChoiceWork(const ChoiceShape& shape, std::byte* memory) {
  Pieces pieces(memory);
  cut_states(shape.head, std::size_t{shape.lists} * shape.folds(), &pieces, &partial);
  if (memory != nullptr) board = ChoiceBoard::cut(shape, memory + pieces.bytes());
  bytes = pieces.bytes() + ChoiceBoard::bytes(shape);
}

ChoiceShape shape_within(const ChoiceFormat& format, const ChoiceBounds& bounds,
                         std::uint32_t lists) {
  ChoiceShape shape{format};
  shape.lists = lists;
  shape.most_runs = bounds.runs;
  shape.most_rows = bounds.rows;
  shape.most_units = bounds.units;
  shape.most_budget = bounds.read;
  shape.most_coded = bounds.coded;
  shape.cached = bounds.cached;
  shape.packed = bounds.packed;
  return shape;
}

ChoiceShape with(ChoiceShape shape, const ChoiceQuestion& list) {
  TL_CHECK(!list.runs.empty());
  std::uint32_t rows = 0, units = 0;
  for (const IndexedRows& run : list.runs) {
    rows += whole_blocks(run.rows);
    units += whole_blocks(run.units);
  }
  ++shape.lists;
  shape.most_runs = std::max(shape.most_runs, static_cast<std::uint32_t>(list.runs.size()));
  shape.most_rows = std::max(shape.most_rows, rows);
  shape.most_units = std::max(shape.most_units, units);
  shape.most_budget = std::max(shape.most_budget, list.read);
  shape.most_coded = std::max(shape.most_coded, list.coded);
  shape.cached = list.slots.memory != nullptr;
  shape.packed = list.runs.front().row == nullptr;
  return shape;
}

ChoiceList list_of(const ChoiceShape& shape, const ChoiceQuestion& asked, std::uint32_t step,
                   ChoiceRun* here, const ChoiceRun* there) {
  ChoiceList list;
  list.runs = {there, asked.runs.size()};
  for (const IndexedRows& rows : asked.runs) {
    TL_CHECK((rows.row == nullptr) == shape.packed);
    *here++ = {rows, list.rows, list.units};
    list.rows += whole_blocks(rows.rows);
    list.units += whole_blocks(rows.units);
  }
  list.budget = asked.read;
  list.coded_budget = asked.coded;
  list.estimated = asked.estimated;
  TL_CHECK((asked.slots.memory != nullptr) == shape.cached);
  if (shape.cached) list.cache = cut_slots(asked.slots, shape.row_bytes);
  // Nowhere else can they be attended.
  TL_CHECK(!shape.packed || asked.slots.slots >= asked.read);
  list.step = step;
  return list;
}

bool fits_slots(const ChoiceShape& shape, const ListSlots& slots) {
  return !shape.cached || shape.most_rows <= slots.rows;
}

bool has_slots_of(std::span<const ChoiceQuestion> lists, const ChoiceQuestion& other) {
  return other.slots.memory != nullptr &&
         std::ranges::any_of(lists, [&](const ChoiceQuestion& list) {
           return list.slots.memory == other.slots.memory;
         });
}

}  // namespace thermocline::cuda
