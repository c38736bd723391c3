// Memory of a measurement: the device's, or pinned on the host. Needs nothing but CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <span>
#include <vector>

#include "kernels/cuda/check.h"

namespace thermocline::cuda {

enum class Where : std::uint8_t { device, pinned };

// Owned; not initialized.
template <typename T>
class Memory {
 public:
  static Result<Memory> create(Where where, std::size_t count) {
    Memory memory;
    void* data = nullptr;
    const std::size_t bytes = count * sizeof(T);
    if (where == Where::device)
      TL_TRY(check(cudaMalloc(&data, bytes), "taking device memory"));
    else
      TL_TRY(check(cudaHostAlloc(&data, bytes, cudaHostAllocDefault), "taking pinned memory"));
    memory.data_ = {static_cast<T*>(data), Free{where}};
    memory.count_ = count;
    return memory;
  }
  static Result<Memory> of(Where where, const std::vector<T>& values) {
    TL_TRY_ASSIGN(Memory memory, create(where, values.size()));
    TL_TRY(check(
        cudaMemcpy(memory.data(), values.data(), values.size() * sizeof(T), cudaMemcpyDefault),
        "filling memory"));
    return memory;
  }

  T* data() const { return data_.get(); }
  std::size_t count() const { return count_; }
  std::size_t bytes() const { return count_ * sizeof(T); }
  std::span<const T> span() const { return {data(), count_}; }
  Result<std::vector<T>> copy() const {
    std::vector<T> values(count_);
    TL_TRY(check(cudaMemcpy(values.data(), data(), bytes(), cudaMemcpyDefault), "reading memory"));
    return values;
  }

 private:
  struct Free {
    Where where = Where::device;
    void operator()(T* data) const {
      if (where == Where::device)
        cudaFree(data);
      else
        cudaFreeHost(data);
    }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t count_ = 0;
};

}  // namespace thermocline::cuda
