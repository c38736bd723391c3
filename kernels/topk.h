// The k largest of many values, as row sets. The order is total: equal values go to the lower row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attend.h"

namespace thermocline {

// Scratch of one thread; it grows to the longest input.
struct TopRowsScratch {
  std::vector<float> most;
  std::vector<std::uint32_t> keys, rows;
};

struct TopkOps {
  // Parts each 64 values into `parts` sets of as many, whichever, and writes the largest of each
  // to most[block * parts ...]; -1 where none is above that. `blocks` whole blocks.
  void (*largest)(const float* value, std::size_t blocks, float* most);
  std::size_t parts;
  // Sets bit r % 64 of rows[r / 64] where value[r] >= bound, clears the others.
  void (*reaching)(const float* value, std::size_t count, float bound, RowSet* rows);
};

// Sets bit r % 64 of rows[r / 64] for the k largest of `value`, and clears all others; rows has one
// word for each 64 values begun. A negative value, or one that is not a number, stands for no row
// and is never taken. Returns how many were taken: k, or all there are.
std::size_t top_rows(const TopkOps& ops, std::span<const float> value, std::size_t k,
                     TopRowsScratch* scratch, std::span<RowSet> rows);

}  // namespace thermocline
