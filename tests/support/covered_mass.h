// How much of the true attention mass a read list covers, in plain loops and double precision.
#pragma once

#include <span>

#include "retrieval/select/selector.h"

namespace thermocline {

// The rows of a run of one KV head, as the run's segment stores them: [rows] records of `layout`.
struct RunKeys {
  RowLayout layout;
  std::uint32_t rows = 0;
  const std::byte* data = nullptr;
};

// The share of softmax mass, averaged over the query heads, that lies in the list's steady rows and
// in the rows that `list` reads exactly; estimates from summaries count for nothing. keys has one
// entry a run of the query. 1 when there is nothing to read.
double covered_mass(HeadShape shape, const ListQuery& query, std::span<const RunKeys> keys,
                    const ReadList& list);

}  // namespace thermocline
