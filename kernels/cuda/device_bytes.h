// Device memory that is owned.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/cuda/check.h"

namespace thermocline::cuda {

// What could fail here is an earlier kernel; whoever waited has been told.
struct FreeDevice {
  void operator()(std::byte* memory) const {
    static_cast<void>(check(cudaFree(memory), "giving device memory back"));
  }
};
using DeviceBytes = std::unique_ptr<std::byte, FreeDevice>;

// Of the thread's current device, aligned to 256 bytes. `call` is named where there is no more.
inline Result<DeviceBytes> take_device_bytes(std::uint64_t bytes, const char* call) {
  void* memory = nullptr;
  TL_TRY(check(cudaMalloc(&memory, bytes), call));
  return DeviceBytes(static_cast<std::byte*>(memory));
}

}  // namespace thermocline::cuda
