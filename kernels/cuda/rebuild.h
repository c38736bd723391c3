// Keys at low rank, rebuilt where they are read: of all rows that the lists of a layer chose, in
// one launch.
#pragma once

#include <span>

#include "kernels/cuda/choice.h"

namespace thermocline::cuda {

// After the board's folds are written; keys are at low rank. Leaves the key of each row that is
// read in the board's `keys`, as floats, rotated to its position. A key's bits depend on its own
// coefficients alone. Only queues work.
Status rebuild(Stream& stream, const ChoiceShape& shape, std::span<const ChoiceList> lists,
               const ChoiceBoard& board);

}  // namespace thermocline::cuda
