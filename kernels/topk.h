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
  std::vector<float> in_play;
};

inline constexpr std::size_t kTopkSlack = 16;

// What is negative, or not a number, is passed over.
struct TopkOps {
  // The largest value; -1 where there is none.
  float (*largest)(const float* value, std::size_t count);
  // How many values are at least `bound`.
  std::size_t (*count_reaching)(const float* value, std::size_t count, float bound);
  // Sets bit r % 64 of rows[r / 64] where value[r] >= bound, clears the others.
  void (*reaching)(const float* value, std::size_t count, float bound, RowSet* rows);
  // The values of at least `low` and less than `high`, in their order, to `out`, which has room for
  // kTopkSlack more and may be `value`. Returns how many.
  std::size_t (*between)(const float* value, std::size_t count, float low, float high, float* out);
};

// Sets bit r % 64 of rows[r / 64] for the k largest of `value`, and clears all others; rows has one
// word for each 64 values begun. A negative value, or one that is not a number, stands for no row
// and is never taken. Returns how many were taken: k, or all there are.
std::size_t top_rows(const TopkOps& ops, std::span<const float> value, std::size_t k,
                     TopRowsScratch* scratch, std::span<RowSet> rows);

}  // namespace thermocline
