// What the stages of choosing have in common on the device. Device code.
#pragma once

#include <cuda_runtime.h>

#include <limits>

#include "kernels/cuda/choice.h"

namespace thermocline::cuda {

inline constexpr int kListThreads = 1024;               // where one thread block has a whole list
inline constexpr int kChunkThreads = 256;               // where one has a part of it
inline constexpr std::uint32_t kChunk = kChunkThreads;  // rows or units of that
inline constexpr int kMostHeads = 8;                    // query heads a KV head
inline constexpr float kNone = -std::numeric_limits<float>::infinity();

using ChoiceKernel = void (*)(ChoiceShape, const ChoiceList*, ChoiceBoard);

__host__ __device__ inline std::uint32_t chunks_of(std::uint32_t rows) {
  return (rows + kChunk - 1) / kChunk;
}

// Which run of a list one of its rows (`first` is first_row) or units (first_unit) is in, or
// behind the end of; runs are in order.
__device__ inline std::uint32_t run_of(const ChoiceList& list, std::uint32_t ChoiceRun::*first,
                                       std::uint32_t at) {
  std::uint32_t low = 0, high = static_cast<std::uint32_t>(list.runs.size());
  while (high - low > 1) {
    const std::uint32_t middle = (low + high) / 2;
    (list.runs.data()[middle].*first <= at ? low : high) = middle;
  }
  return low;
}

// The board of list `list`.
__host__ __device__ inline ChoiceBoard board_of(const ChoiceShape& shape, ChoiceBoard board,
                                                std::size_t list) {
  const std::size_t heads = shape.head.heads;
  board.query_scale += list * heads;
  board.query_sum += list * heads;
  board.query_code += list * heads * shape.head.key_dim / 4;
  board.unit_score += list * heads * shape.most_units;
  board.shift += list * heads;
  board.beside += list * heads;
  board.unit_share += list * heads;
  if (shape.bits > 0) {
    board.weight += list * heads * shape.most_rows;
    board.part_sum += list * chunks_of(shape.most_rows) * heads;
    board.mass += list * shape.most_rows;
    board.ties += list * blocks_of(shape.most_rows);
  } else {
    board.rank += list * shape.most_units;
    board.unit_rows += list * shape.most_units;
    board.taken += list * blocks_of(shape.most_units);
  }
  if (shape.most_coded > 0) {
    board.loss += list * shape.most_rows;
    board.coded += list * blocks_of(shape.most_rows);
    board.unit_coded += list * heads * shape.most_units;
    board.coded_weight += list * shape.most_coded * heads;
  }
  if (shape.summary_bytes > 0) {
    board.estimated += list * blocks_of(shape.most_units);
    if (shape.bits > 0) board.unread += list * shape.most_units;
    board.log_weight += list * shape.most_units * heads;
  }
  board.sets += list * blocks_of(shape.most_rows);
  board.read += list;
  board.summaries += list;
  board.missed += list * shape.most_budget;
  board.fetched += list;
  if (shape.rebuilds()) {
    board.rebuilt += list * shape.most_budget;
    board.keys += list * shape.most_budget * shape.head.key_dim;
    board.of_runs += list * shape.most_runs;
  }
  board.views += list * shape.views();
  board.folds += list * shape.folds();
  return board;
}

}  // namespace thermocline::cuda
