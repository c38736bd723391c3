// Attention of one query in plain loops and double precision: what AttendOps is compared with.
#pragma once

#include <vector>

#include "kernels/attend.h"

namespace thermocline {

// Softmax attention over the rows of all folds, divided by its sum: [value_dim], zeros when nothing
// is visible. `visible`, unless empty, has one entry a fold; it applies to a query at `position`.
// `head` is the query's among shape.heads: scored folds have a score for each.
std::vector<double> attend_reference(const float* query, HeadShape shape,
                                     std::span<const Fold> folds,
                                     std::span<const Visibility> visible = {},
                                     std::uint32_t position = 0, std::uint32_t head = 0);

}  // namespace thermocline
