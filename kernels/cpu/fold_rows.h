// The rows of a fold by rank, wherever they are.
#pragma once

#include <algorithm>
#include <bit>
#include <utility>

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
      const auto add = [&](int row) {
        key[n] = block.key + static_cast<std::size_t>(row) * fold.key_stride;
        value[n] = block.value + static_cast<std::size_t>(row) * fold.value_stride;
        if (numbered) number[n] = block.first_number + static_cast<std::uint32_t>(row);
        ++n;
      };
      RowSet left = block.rows;
      const int first = std::countr_zero(left), rows = std::popcount(left);
      if (left >> first % kBlockRows == first_rows(rows))  // neighbours: no bit says where one is
        for (int i = 0; i < rows; ++i) add(first + i);
      else
        for (; left != 0; left &= left - 1) add(std::countr_zero(left));
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

// The rows of a fold that comes next, asked of memory line by line while another is attended:
// memory then has something to do all the time, not only while keys are scored.
class RowsAhead {
 public:
  RowsAhead(const Fold* next, HeadShape shape) : fold_(next) {
    if (!next) return;
    key_bytes_ = next->scored ? 0 : row_bytes(next->key_format, shape.key_dim);
    value_bytes_ = row_bytes(next->value_format, shape.value_dim);
    advance();
  }

  __attribute__((always_inline)) void ask(int lines) {
    if (!fold_) return;
    for (; lines > 0; --lines) {
      __builtin_prefetch(now_.at, 0, 2);  // into the second cache: the first is full of this fold
      now_.at += 64;
      if (now_.at >= now_.end && !advance()) return;
    }
  }

 private:
  struct Range {
    const std::byte *at = nullptr, *end = nullptr;
  };

  // To the next neighbouring rows: of a side, or of both where they lie together.
  bool advance() {
    now_ = std::exchange(values_, {});
    if (now_.at) return true;
    for (; left_ == 0; ++block_) {
      if (block_ == fold_->blocks.size()) {
        fold_ = nullptr;
        return false;
      }
      left_ = fold_->blocks[block_].rows;
    }
    const BlockView& block = fold_->blocks[block_ - 1];
    const int first = std::countr_zero(left_), stretch = std::countr_one(left_ >> first);
    left_ &= ~(first_rows(stretch) << first);
    const auto range = [&](const std::byte* rows, std::size_t stride, std::uint32_t bytes) {
      const std::byte* at = rows + static_cast<std::size_t>(first) * stride;
      return Range{at, at + static_cast<std::size_t>(stretch - 1) * stride + bytes};
    };
    now_ = range(block.value, fold_->value_stride, value_bytes_);
    if (key_bytes_ == 0) return true;
    const Range keys = range(block.key, fold_->key_stride, key_bytes_);
    if (keys.at + key_bytes_ == now_.at)
      now_.at = keys.at;
    else
      values_ = std::exchange(now_, keys);
    return true;
  }

  const Fold* fold_;  // null: all were asked for
  std::uint32_t key_bytes_ = 0, value_bytes_ = 0;
  std::size_t block_ = 0;  // the next
  RowSet left_ = 0;        // of the one before it
  Range now_, values_;     // values_: to come
};

}  // namespace
}  // namespace thermocline
