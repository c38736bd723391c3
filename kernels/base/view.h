// Views: they copy, they own nothing, they know their shape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "kernels/base/error.h"

namespace thermocline {

// A row-major matrix that someone else owns; `stride` counts elements between rows.
template <typename T>
class MatView {
 public:
  MatView() = default;
  MatView(T* data, std::size_t rows, std::size_t cols) : MatView(data, rows, cols, cols) {}
  MatView(T* data, std::size_t rows, std::size_t cols, std::size_t stride)
      : data_(data), rows_(rows), cols_(cols), stride_(stride) {}

  // A view that may write is one that reads. (A constructor: nvcc warns of an operator that would
  // convert a view that reads to itself.)
  template <typename Mutable>
  requires std::is_same_v<const Mutable, T> MatView(MatView<Mutable> view)
      : MatView(view.data(), view.rows(), view.cols(), view.stride()) {}

  T* data() const { return data_; }
  std::size_t rows() const { return rows_; }
  std::size_t cols() const { return cols_; }
  std::size_t stride() const { return stride_; }
  bool empty() const { return rows_ == 0 || cols_ == 0; }

  T* row(std::size_t r) const { return data_ + r * stride_; }
  std::span<T> operator[](std::size_t r) const { return {row(r), cols_}; }
  MatView rows_from(std::size_t first, std::size_t count) const {
    TL_CHECK(first + count <= rows_);
    return {row(first), count, cols_, stride_};
  }

 private:
  T* data_ = nullptr;
  std::size_t rows_ = 0, cols_ = 0, stride_ = 0;
};

}  // namespace thermocline
