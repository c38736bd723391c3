// Choosing by units of rows, as retrieval/select/ranked.h describes it: a score of each unit, its
// rank among all of them, and the best ranked units as long as they fit into what may be read, or
// into what may be estimated: down to the best so many that retrieval/select/ranked.h looks at, and
// those that rank as the last of them.
#pragma once

#include <span>

#include "kernels/cuda/choice.h"

namespace thermocline::cuda {

// A stage of choose(), of a shape whose rows have no codes: the board's sets; which summaries are
// read, and for how many rows each. Only queues work.
Status take_by_units(Stream& stream, const ChoiceShape& shape, std::span<const ChoiceList> lists,
                     const ChoiceBoard& board);

}  // namespace thermocline::cuda
