// Rows that are chosen and not in a list's cache, brought there: read from where they lie (pinned
// host memory, as a rule) by the device itself.
#pragma once

#include <span>

#include "kernels/cuda/sketch.h"

namespace thermocline::cuda {

// After the board's sets are chosen; lists have caches. A slot that this step does not ask for is
// taken over in the order of the slots, from where the last search ended (a clock of one turn).
// Only queues work.
Status fetch(Stream& stream, const SketchShape& shape, std::span<const SketchList> lists,
             const SketchBoard& board);

}  // namespace thermocline::cuda
