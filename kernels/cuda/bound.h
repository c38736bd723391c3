// Where the best of many values end: the bound that a budget is used up at. Values are not
// negative, so they have the order of their bits, of which 11, 11 and 10 are found at a time.
// Device code.
#pragma once

#include <cstdint>

#include "kernels/cuda/board.h"
#include "kernels/cuda/warp.h"

namespace thermocline::cuda {

struct Bound {
  bool all = false;          // there is no more than is needed: no bound
  std::uint32_t bits = 0;    // otherwise of the bound: what is above it is needed whole,
  std::uint32_t needed = 0;  // and of what is at it so much
};

struct BoundScratch {
  static constexpr int kBins = 1 << 11;
  std::uint32_t bins[kBins];
  std::uint32_t found_digit, found_above;
};
__device__ inline BoundScratch& bound_scratch() {
  __shared__ BoundScratch scratch;
  return scratch;
}

// each(add) calls add(value, amount) for the values that are this thread's; every thread of a block
// of kListThreads comes along, and gets the bound at which `needed` is reached, from the largest
// value down. needed: 1 or more.
template <typename Each>
__device__ Bound find_bound(std::uint32_t needed, const Each& each) {
  constexpr int kDigits[] = {11, 11, 10};
  constexpr int kBins = BoundScratch::kBins;
  BoundScratch& scratch = bound_scratch();
  Bound bound{.needed = needed};
  int shift = 32;
  for (const int digits : kDigits) {
    const int before = shift;
    shift -= digits;
    for (std::uint32_t b = threadIdx.x; b < kBins; b += kListThreads) scratch.bins[b] = 0;
    if (threadIdx.x == 0) scratch.found_above = ~0u;
    __syncthreads();
    each([&](float value, std::uint32_t amount) {
      const std::uint32_t bits = __float_as_uint(value);
      if (before < 32 && bits >> before != bound.bits) return;
      atomicAdd(&scratch.bins[bits >> shift & ((1u << digits) - 1)], amount);
    });
    __syncthreads();
    // Bins from the largest down, two a thread: in which the last that is needed lies.
    static_assert(kBins == 2 * kListThreads);
    const std::uint32_t high = kBins - 1 - 2 * threadIdx.x;
    std::uint32_t total = 0;
    std::uint32_t above =
        sum_before<kListThreads>(scratch.bins[high] + scratch.bins[high - 1], &total);
    for (std::uint32_t bin = high + 1; bin-- > high - 1;) {
      if (above < bound.needed && above + scratch.bins[bin] >= bound.needed) {
        scratch.found_digit = bin;
        scratch.found_above = above;
      }
      above += scratch.bins[bin];
    }
    __syncthreads();
    bound.all = scratch.found_above == ~0u;
    if (bound.all) break;  // the same for all threads; only at the first digits
    bound.bits = bound.bits << digits | scratch.found_digit;
    bound.needed -= scratch.found_above;
    __syncthreads();
  }
  __syncthreads();  // what is shared may be written again
  return bound;
}

}  // namespace thermocline::cuda
