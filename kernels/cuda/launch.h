// Starting a kernel so that neither its stream nor its check can be forgotten. nvcc only.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "kernels/cuda/check.h"
#include "kernels/cuda/stream.h"

namespace thermocline::cuda {

// Returns this launch's own error: an older one of the thread (an embedder's, say) is neither
// blamed on it nor swallowed. A fault while the kernel runs shows when the stream is waited for.
template <typename... Parameters, typename... Arguments>
Status launch(Stream& stream, const char* name, dim3 grid, dim3 block,
              void (*kernel)(Parameters...), Arguments&&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream.handle();
  return check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

}  // namespace thermocline::cuda
