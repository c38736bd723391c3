// Starting a kernel so that neither its stream nor its check can be forgotten. nvcc only.
#pragma once

#include <cuda_runtime.h>

#include <tuple>
#include <utility>

#include "kernels/cuda/check.h"
#include "kernels/cuda/stream.h"

namespace thermocline::cuda {

// Returns this launch's own error: an older one of the thread (an embedder's, say) is neither
// blamed on it nor swallowed. A fault while the kernel runs shows when the stream is waited for,
// and of a stream whose work recurs the launch's own as well. `name` outlives the stream.
template <typename... Parameters, typename... Arguments>
Status launch(Stream& stream, const char* name, dim3 grid, dim3 block,
              void (*kernel)(Parameters...), Arguments&&... arguments) {
  const auto queue = [grid, block, kernel](cudaStream_t on, const Parameters&... given) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
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
            kernel, grid.x, grid.y, grid.z, block.x, block.y, block.z, what...);
      },
      given);
  return {};
}

}  // namespace thermocline::cuda
