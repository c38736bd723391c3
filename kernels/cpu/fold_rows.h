// The rows of a fold by rank, wherever they are.
#pragma once

#include <algorithm>
#include <bit>

#include "kernels/attend.h"

namespace thermocline {
namespace {

struct FoldRows {
  int count = 0;
  const std::byte* key[kFoldRows];
  const std::byte* value[kFoldRows];
  std::uint32_t number[kFoldRows];  // in their segment; only where a side is fitted
  bool weighted = false;            // whether a row has a log weight that is not 0
  float log_weight[kFoldRows];      // if weighted
  const float* scores[kFoldRows];   // of the query heads; only in a scored fold

  void list(const Fold& fold, std::uint32_t heads) {
    int n = 0;
    const bool numbered = fold.key_fit || fold.value_fit;
    for (const BlockView& block : fold.blocks) {
      const int before = n;
      for (RowSet left = block.rows; left != 0;) {  // a stretch of neighbours at a time
        const int first = std::countr_zero(left);
        const int stretch = std::countr_one(left >> first);
        const std::byte* k = block.key + static_cast<std::size_t>(first) * fold.key_stride;
        const std::byte* v = block.value + static_cast<std::size_t>(first) * fold.value_stride;
        for (int i = 0; i < stretch; ++i, ++n) {
          key[n] = k;
          value[n] = v;
          k += fold.key_stride;
          v += fold.value_stride;
        }
        for (int i = 0; i < stretch && numbered; ++i)
          number[n - stretch + i] = block.first_number + static_cast<std::uint32_t>(first + i);
        left &= ~(first_rows(stretch) << first);
      }
      if (fold.scored) {
        for (int r = before; r < n; ++r)
          scores[r] = block.log_weight + static_cast<std::size_t>(r - before) * heads;
      } else if (block.log_weight) {
        if (!weighted) std::fill_n(log_weight, before, 0.0f);
        weighted = true;
        std::copy_n(block.log_weight, n - before, log_weight + before);
      } else if (weighted) {
        std::fill(log_weight + before, log_weight + n, 0.0f);
      }
    }
    count = n;
  }
};

}  // namespace
}  // namespace thermocline
