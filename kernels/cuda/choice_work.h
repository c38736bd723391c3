// What choosing a few lists together takes: their shape, what each asks as the device reads it, and
// what the device works in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cuda/choice.h"
#include "kernels/cuda/pieces.h"
#include "kernels/device_choice.h"

namespace thermocline::cuda {

void cut_states(HeadShape shape, std::size_t states, Pieces* from, States* of);

// What is on the device alone.
struct ChoiceWork {
  States partial;  // of folds
  ChoiceBoard board;
  std::size_t bytes = 0;

  ChoiceWork(const ChoiceShape& shape, std::byte* memory);
};

// Of so many lists, each with all that one may have.
ChoiceShape shape_within(const ChoiceFormat& format, const ChoiceBounds& bounds,
                         std::uint32_t lists);
// With room for one more list.
ChoiceShape with(ChoiceShape shape, const ChoiceQuestion& list);

// What a list asks, but for its query and what it attended already. Its runs are written to `here`,
// and are at `there` for the device.
ChoiceList list_of(const ChoiceShape& shape, const ChoiceQuestion& asked, std::uint32_t step,
                   ChoiceRun* here, const ChoiceRun* there);

// Of one list.
bool fits_slots(const ChoiceShape& shape, const ListSlots& slots);
bool has_slots_of(std::span<const ChoiceQuestion> lists, const ChoiceQuestion& other);

// As many of `lists`, from the first on, as one board takes: those whose work `holds(shape)`, which
// have room in their slots, and of those with the same slots only the first. exhausted: not even
// one.
template <typename Holds>
Result<ChoiceShape> shape_of(const ChoiceFormat& format, std::span<const ChoiceQuestion> lists,
                             const Holds& holds) {
  ChoiceShape shape{format};
  for (const ChoiceQuestion& list : lists) {
    const ChoiceShape more = with(shape, list);
    if (!holds(more) || !fits_slots(with(ChoiceShape{format}, list), list.slots) ||
        has_slots_of(lists.first(shape.lists), list))
      break;
    shape = more;
  }
  if (shape.lists > 0) return shape;
  return fail(ErrorCode::exhausted, "choosing on a device among ", lists[0].runs.size(),
              " segments takes more of its memory than was planned: open the cache for a longer "
              "text, or with the course that this one takes");
}

}  // namespace thermocline::cuda
