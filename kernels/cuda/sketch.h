// Choosing by codes of rows, as retrieval/select/sketch.h describes it: scores of clusters and
// rows, each row's share of the attention, the rows that are worth most, and what is left to
// estimate.
#pragma once

#include <span>

#include "kernels/cuda/choice.h"

namespace thermocline::cuda {

// A stage of choose(), of a shape whose rows have codes: the board's sets, and of a ladder its
// coded ones; which summaries are read, and for how many rows each. Only queues work.
Status take_by_codes(Stream& stream, const ChoiceShape& shape, std::span<const ChoiceList> lists,
                     const ChoiceBoard& board);

}  // namespace thermocline::cuda
