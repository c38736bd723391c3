// Starting a kernel so that neither its stream nor its check can be forgotten. nvcc only.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <tuple>
#include <utility>

#include "kernels/cuda/check.h"
#include "kernels/cuda/stream.h"

// Shared memory that a launch asks for: a block's kernel may have more of it than the 48 KiB that
// it may name.
alignas(32) extern __shared__ uint4 launch_shared[];

namespace thermocline::cuda {

struct LaunchSize {
  dim3 grid, block;
  std::size_t shared_bytes = 0;  // of launch_shared
};

// Returns this launch's own error: an older one of the thread (an embedder's, say) is neither
// blamed on it nor swallowed. A fault while the kernel runs shows when the stream is waited for,
// and of a stream whose work recurs the launch's own as well. `name` outlives the stream.
template <typename... Parameters, typename... Arguments>
Status launch(Stream& stream, const char* name, const LaunchSize& size,
              void (*kernel)(Parameters...), Arguments&&... arguments) {
  const auto queue = [size, kernel](cudaStream_t on, const Parameters&... given) {
    if (size.shared_bytes > 0)
      if (const cudaError_t code =
              cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(size.shared_bytes));
          code != cudaSuccess)
        return code;
    cudaLaunchConfig_t config = {};
    config.gridDim = size.grid;
    config.blockDim = size.block;
    config.dynamicSmemBytes = size.shared_bytes;
    config.stream = on;
    return cudaLaunchKernelEx(&config, kernel, given...);
  };
  Recurring* const recurring = stream.recurring();
  if (recurring == nullptr)
    return check(queue(stream.handle(), std::forward<Arguments>(arguments)...), name);
  const std::tuple<Parameters...> given(std::forward<Arguments>(arguments)...);
  std::apply(
      [&](const Parameters&... what) {
        recurring->add(
            name,
            [queue, given](cudaStream_t on) {
              return std::apply([&](const Parameters&... each) { return queue(on, each...); },
                                given);
            },
            kernel, size.grid.x, size.grid.y, size.grid.z, size.block.x, size.block.y, size.block.z,
            size.shared_bytes, what...);
      },
      given);
  return {};
}

template <typename... Parameters, typename... Arguments>
Status launch(Stream& stream, const char* name, dim3 grid, dim3 block,
              void (*kernel)(Parameters...), Arguments&&... arguments) {
  return launch(stream, name, LaunchSize{grid, block}, kernel,
                std::forward<Arguments>(arguments)...);
}

}  // namespace thermocline::cuda
