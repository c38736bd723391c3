// Device memory of a test's.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline::cuda {

// Holds a copy of `values`.
template <typename T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values) : size_(values.size()) {
    void* data = nullptr;
    TL_CHECK(cudaMalloc(&data, std::max<std::size_t>(size_, 1) * sizeof(T)) == cudaSuccess);
    data_.reset(static_cast<T*>(data));
    TL_CHECK(cudaMemcpy(data, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice) ==
             cudaSuccess);
  }
  T* data() const { return data_.get(); }
  std::span<const T> span() const { return {data(), size_}; }
  std::vector<T> copy() const { return copy_of(data(), size_); }

  // Of other device memory.
  static std::vector<T> copy_of(const T* from, std::size_t count) {
    std::vector<T> values(count);
    TL_CHECK(cudaMemcpy(values.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost) ==
             cudaSuccess);
    return values;
  }

 private:
  struct Free {
    void operator()(T* data) const { cudaFree(data); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t size_;
};

// Copies of whatever is put, which stay as long as this.
class PutOnDevice {
 public:
  template <typename T>
  T* put(const std::vector<T>& values) {
    const auto copy = std::make_shared<OnDevice<T>>(values);
    kept_.push_back(copy);
    return copy->data();
  }

 private:
  std::vector<std::shared_ptr<void>> kept_;
};

}  // namespace thermocline::cuda
