// Starting a kernel so that neither its stream nor its check can be forgotten. nvcc only.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
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
// blamed on it nor swallowed. A fault while the kernel runs shows when the stream is waited for.
template <typename... Parameters, typename... Arguments>
Status launch(Stream& stream, const char* name, const LaunchSize& size,
              void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (size.shared_bytes > 0)
    TL_TRY(check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(size.shared_bytes)),
                 name));
  cudaLaunchConfig_t config = {};
  config.gridDim = size.grid;
  config.blockDim = size.block;
  config.dynamicSmemBytes = size.shared_bytes;
  config.stream = stream.handle();
  return check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

template <typename... Parameters, typename... Arguments>
Status launch(Stream& stream, const char* name, dim3 grid, dim3 block,
              void (*kernel)(Parameters...), Arguments&&... arguments) {
  return launch(stream, name, LaunchSize{grid, block}, kernel,
                std::forward<Arguments>(arguments)...);
}

}  // namespace thermocline::cuda
