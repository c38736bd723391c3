// Work that the threads of a warp, or of a thread block, do together. Device code; every thread of
// the warp, or block, comes along.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace thermocline::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kWholeWarp = 0xffffffffu;

// Each of the `lanes` that share a row has a part of the row's sum for every head. Afterwards lane
// `part` has the whole sum for head *head in sum[0]. As it adds, a lane hands half of the heads
// that it still has to another and takes that one's other half: 5 exchanges in place of 16 for 4
// heads and 16 lanes. Both are powers of two, and there are at least as many lanes as heads.
template <int kHeads>
__device__ void share_sums(float (&sum)[kHeads], int lanes, int part, int* head) {
  int step = lanes / 2;
  *head = 0;
#pragma unroll
  for (int half = kHeads / 2; half > 0; half /= 2, step /= 2) {
    const bool upper = (part & step) != 0;
    if (upper) *head += half;
#pragma unroll
    for (int h = 0; h < half; ++h) {
      const float given = upper ? sum[h] : sum[h + half];
      const float kept = upper ? sum[h + half] : sum[h];
      sum[h] = kept + __shfl_xor_sync(kWholeWarp, given, step);
    }
  }
  for (; step > 0; step /= 2) sum[0] += __shfl_xor_sync(kWholeWarp, sum[0], step);
}

struct Add {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
  __device__ std::uint64_t operator()(std::uint64_t a, std::uint64_t b) const {
    return a > b ? a : b;
  }
};

// add(a, b) of all threads' values, in one order for a block of kThreads; every thread gets it.
template <int kThreads, typename T, typename Add>
__device__ T reduce(T mine, const Add& add) {
  constexpr int kWarps = kThreads / kWarp;
  static_assert(kThreads % kWarp == 0 && kWarps <= kWarp);
  __shared__ T of_warp[kWarps];
  for (int step = kWarp / 2; step > 0; step /= 2)
    mine = add(mine, __shfl_xor_sync(kWholeWarp, mine, step));
  const int lane = threadIdx.x % kWarp;
  if (lane == 0) of_warp[threadIdx.x / kWarp] = mine;
  __syncthreads();
  T all = of_warp[0];
  for (int w = 1; w < kWarps; ++w) all = add(all, of_warp[w]);
  __syncthreads();  // of_warp may be written again
  return all;
}

// The sum of the values of the threads before this one; *total: of all.
template <int kThreads>
__device__ std::uint32_t sum_before(std::uint32_t mine, std::uint32_t* total) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ std::uint32_t of_warp[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  std::uint32_t end = mine;
  for (int step = 1; step < kWarp; step *= 2) {
    const std::uint32_t before = __shfl_up_sync(kWholeWarp, end, step);
    if (lane >= step) end += before;
  }
  if (lane == kWarp - 1) of_warp[warp] = end;
  __syncthreads();
  std::uint32_t before = end - mine;
  *total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += of_warp[w];
    *total += of_warp[w];
  }
  __syncthreads();  // of_warp may be written again
  return before;
}

// In place, over shared memory of n floats: the rotation of kernels/hadamard.h, to the bit. Thread
// i < n has value i, which it returns.
__device__ inline float hadamard(float* shared, std::uint32_t n, float mine) {
  const std::uint32_t block = n & (~n + 1), at = threadIdx.x;
  for (std::uint32_t half = 1; half < block; half *= 2) {
    if (at < n) shared[at] = mine;
    __syncthreads();
    if (at < n) mine = (at & half) == 0 ? mine + shared[at + half] : shared[at - half] - mine;
    __syncthreads();
  }
  return mine * (1.0f / sqrtf(static_cast<float>(block)));
}

}  // namespace thermocline::cuda
