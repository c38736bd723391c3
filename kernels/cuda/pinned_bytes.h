// Memory of the host that a device copies from and to while the host does something else, owned.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/cuda/check.h"

namespace thermocline::cuda {

struct FreePinned {
  void operator()(std::byte* memory) const {
    static_cast<void>(check(cudaFreeHost(memory), "giving pinned memory back"));
  }
};
using PinnedBytes = std::unique_ptr<std::byte, FreePinned>;

// Of the thread's current device, aligned to 256 bytes at least.
inline Result<PinnedBytes> take_pinned_bytes(std::uint64_t bytes) {
  void* memory = nullptr;
  TL_TRY(check(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "taking pinned memory"));
  return PinnedBytes(static_cast<std::byte*>(memory));
}

}  // namespace thermocline::cuda
