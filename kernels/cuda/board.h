// How a list is gone through on the device. Device code.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/sketch.h"

namespace thermocline::cuda {

inline constexpr int kListThreads = 1024;  // where one thread block has a whole list

// Which run of a list one of its rows (`first` is first_row) or clusters (first_cluster) is in, or
// behind the end of; runs are in order.
__device__ inline std::uint32_t run_of(const SketchList& list, std::uint32_t SketchRun::*first,
                                       std::uint32_t at) {
  std::uint32_t low = 0, high = static_cast<std::uint32_t>(list.runs.size());
  while (high - low > 1) {
    const std::uint32_t middle = (low + high) / 2;
    (list.runs.data()[middle].*first <= at ? low : high) = middle;
  }
  return low;
}

}  // namespace thermocline::cuda
