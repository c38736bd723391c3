// Rows that are chosen and not in a list's cache, brought there: read by the device itself, from
// where they lie (pinned host memory, as a rule) or where they were packed for it (always there).
#pragma once

#include <span>

#include "kernels/cuda/choice.h"

namespace thermocline::cuda {

// After the board's sets are chosen; lists have caches. A slot that this step does not ask for is
// taken over in the order of the slots, from where the last search ended (a clock of one turn).
// Rows that come packed have their slots then, and are not in them. Only queues work.
Status fetch(Stream& stream, const ChoiceShape& shape, std::span<const ChoiceList> lists,
             const ChoiceBoard& board);

// Some of those, to their slots. Only queues work.
Status fetch_packed(Stream& stream, const ChoiceShape& shape, std::span<const ChoiceList> lists,
                    const ChoiceBoard& board, std::span<const PackedRows> packed);

}  // namespace thermocline::cuda
