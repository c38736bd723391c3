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
  std::vector<std::uint32_t> keys, candidates;
};

// Sets bit r % 64 of rows[r / 64] for the k largest of `value`, and clears all others; rows has one
// word for each 64 values begun. A negative value, or one that is not a number, stands for no row
// and is never taken. Returns how many were taken: k, or all there are.
std::size_t top_rows(std::span<const float> value, std::size_t k, TopRowsScratch* scratch,
                     std::span<RowSet> rows);

}  // namespace thermocline
