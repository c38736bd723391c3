// How a measurement on a GPU is timed, and what it is held against. Needs nothing but CUDA.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/cuda/stream.h"
#include "tests/bench/cuda/device_memory.h"

namespace thermocline::cuda {

// Median time of what `queue` queues, in microseconds, over `rounds`; `before` goes first, untimed,
// and then the caches are filled with something else: a layer's rows are not in them when a step
// comes to that layer.
template <typename Before, typename Queue>
Result<double> time_us(Stream& stream, int rounds, const Before& before, const Queue& queue) {
  TL_TRY_ASSIGN(const auto other, Memory<std::byte>::create(Where::device, std::size_t{192} << 20));
  cudaEvent_t first = nullptr, last = nullptr;
  TL_TRY(check(cudaEventCreate(&first), "making an event"));
  TL_TRY(check(cudaEventCreate(&last), "making an event"));
  std::vector<float> times;
  for (int round = 0; round <= rounds; ++round) {  // the first warms up
    TL_TRY(before());
    TL_TRY(check(cudaMemsetAsync(other.data(), round, other.bytes(), stream.handle()),
                 "clearing caches"));
    TL_TRY(stream.wait());
    TL_TRY(check(cudaEventRecord(first, stream.handle()), "recording"));
    TL_TRY(queue());
    TL_TRY(check(cudaEventRecord(last, stream.handle()), "recording"));
    TL_TRY(check(cudaEventSynchronize(last), "waiting for a measurement"));
    float ms = 0;
    TL_TRY(check(cudaEventElapsedTime(&ms, first, last), "reading a clock"));
    if (round > 0) times.push_back(ms);
  }
  cudaEventDestroy(first);
  cudaEventDestroy(last);
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return 1000.0 * times[times.size() / 2];
}

// What the machine gives, in bytes a second.
struct Limits {
  double device = 0;  // read, of a copy within the device's memory: half of what is moved
  double link = 0;    // of a copy from pinned memory
};

// `bytes` are copied.
Result<Limits> measure_limits(Stream& stream, int rounds, std::size_t bytes);

}  // namespace thermocline::cuda
