// Device code on the host. A block's threads are fibers of one thread: each runs until it comes to
// a barrier or exchanges values with its warp, and when all are there they go on; warps are ahead
// of each other as far as barriers let them. Blocks run one after the other, on one thread, so
// __shared__ memory is that thread's.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ thread_local
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

// Of the fiber that runs.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

using std::max;
using std::min;

namespace emulated {

inline constexpr int kWarp = 32;

// Both return when all threads of the warp, or of the block, that have not ended are there.
void wait_for_warp();
void wait_for_block();
// What this thread gives its warp at its next exchange, and what lane `lane` of it gave.
void give(const void* value, std::size_t bytes);
void take(int lane, void* value, std::size_t bytes);
// This thread has come to a product of its warp, which all of its lanes come to.
void count_product();
// The launch fails.
[[noreturn]] void trap();
// Queues body to run as every thread of a grid. Waiting for it then fails (cudaErrorLaunchFailure)
// where a thread trapped, or waits for one that never comes.
cudaError_t queue(const cudaLaunchConfig_t& config, std::function<void()> body);

template <typename T>
T exchanged(T value, int lane) {
  give(&value, sizeof value);
  wait_for_warp();
  T other;
  take(lane, &other, sizeof other);
  return other;
}
inline int lane() { return static_cast<int>(threadIdx.x % kWarp); }

}  // namespace emulated

inline void __syncthreads() { emulated::wait_for_block(); }
inline void __syncwarp(unsigned = ~0u) { emulated::wait_for_warp(); }
[[noreturn]] inline void __trap() { emulated::trap(); }
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulated::exchanged(value, lane % emulated::kWarp);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulated::exchanged(value, emulated::lane() ^ mask);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int by) {
  const int from = emulated::lane() - by;
  return emulated::exchanged(value, from < 0 ? emulated::lane() : from);
}
inline unsigned __ballot_sync(unsigned, bool holds) {
  emulated::give(&holds, sizeof holds);
  emulated::wait_for_warp();
  unsigned lanes = 0;
  for (int lane = 0; lane < emulated::kWarp; ++lane) {
    bool one = false;
    emulated::take(lane, &one, sizeof one);
    lanes |= unsigned{one} << lane;
  }
  return lanes;
}
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __popcll(unsigned long long bits) { return std::popcount(bits); }
inline int __ffs(unsigned bits) { return bits == 0 ? 0 : std::countr_zero(bits) + 1; }
inline int __ffsll(long long bits) {
  return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(bits)) + 1;
}
inline int __clzll(long long bits) {
  return std::countl_zero(static_cast<unsigned long long>(bits));
}
// What a launch asks for has no limit of its own here, and is never the last launch's.
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
template <typename T>
T __ldg(const T* at) {
  return *at;
}
// Sums of four products of signed bytes, and of signed with unsigned ones.
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 32; i += 8)
    sum += static_cast<std::int8_t>(a >> i) * static_cast<std::int8_t>(b >> i);
  return sum;
}
template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> more) {
  return std::exchange(*at, *at + more);
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return emulated::queue(
      *config, [kernel, given = std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)] {
        std::apply(kernel, given);
      });
}
