// Scores of rows: each is read once for all query heads that share its KV head. Device code.
#pragma once

#include "kernels/cuda/row_part.h"
#include "kernels/cuda/warp.h"

namespace thermocline::cuda {

// Rows that a lane asks for before it needs the first: what a processor has in flight has to cover
// the memory's latency.
inline constexpr int kAhead = 4;

// Lanes that share a row of `dim` channels: a power of two, so that a warp holds whole rows.
__device__ inline int lanes_of(std::uint32_t dim) {
  int lanes = 1;
  while (lanes * kPart < static_cast<int>(dim)) lanes *= 2;
  return lanes;
}

// put(h, r, query h . row r) for the rows r < count, which lie at row_at(r), and h < heads <=
// kHeads, a power of two; query is [heads][dim]. All kThreads threads of a block come along; each
// sum is made in an order that depends on dim and kHeads alone.
template <int kThreads, int kHeads, typename Part, typename RowAt, typename Put>
__device__ void score_rows(const float* query, int heads, std::uint32_t dim, int count,
                           const RowAt& row_at, const Put& put) {
  const int lanes = lanes_of(dim);
  const int part = threadIdx.x % lanes;
  const int together = kThreads / lanes;  // rows
  const bool loads = part * kPart < static_cast<int>(dim);
  float q[kHeads][kPart];
#pragma unroll
  for (int h = 0; h < kHeads; ++h)
#pragma unroll
    for (int i = 0; i < kPart; ++i)
      q[h][i] = loads && h < heads ? query[h * dim + part * kPart + i] : 0.0f;

  // Whole warps stay in the loop, since a row's sum crosses lanes.
  for (int first = static_cast<int>(threadIdx.x) / lanes, begin = 0; begin < count;
       begin += kAhead * together, first += kAhead * together) {
    typename Part::Raw raw[kAhead] = {};
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int r = first + a * together;
      if (loads && r < count) raw[a] = Part::load(row_at(r), dim, part);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int r = first + a * together;
      float row[kPart];
      Part::unpack(raw[a], row);
      float sum[kHeads];
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        sum[h] = 0.0f;
#pragma unroll
        for (int i = 0; i < kPart; ++i) sum[h] = fmaf(row[i], q[h][i], sum[h]);
      }
      if (lanes >= kHeads) {
        int head = 0;
        share_sums(sum, lanes, part, &head);
        if (part % (lanes / kHeads) == 0 && r < count && head < heads) put(head, r, sum[0]);
        continue;
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        for (int step = lanes / 2; step > 0; step /= 2)
          sum[h] += __shfl_xor_sync(kWholeWarp, sum[h], step);
        if (part == 0 && r < count && h < heads) put(h, r, sum[h]);
      }
    }
  }
}

}  // namespace thermocline::cuda
