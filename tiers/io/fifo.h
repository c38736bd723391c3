// First in, first out, in one growing array: a queue that allocates nothing once it has been full.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline {

// std::deque frees and allocates chunks as it moves along; this one stays where it is.
template <typename T>
class Fifo {
 public:
  bool empty() const { return size_ == 0; }
  std::size_t size() const { return size_; }

  // push() allocates nothing as long as no more are in it.
  void reserve(std::size_t capacity) {
    if (capacity > ring_.size()) grow(capacity);
  }
  void push(T value) {
    if (size_ == ring_.size()) grow(ring_.empty() ? 16 : 2 * ring_.size());
    ring_[(first_ + size_) % ring_.size()] = std::move(value);
    ++size_;
  }
  T pop() {
    TL_CHECK(size_ > 0);
    T value = std::move(ring_[first_]);
    first_ = (first_ + 1) % ring_.size();
    --size_;
    return value;
  }

 private:
  void grow(std::size_t capacity) {
    std::vector<T> larger(capacity);
    for (std::size_t i = 0; i < size_; ++i)
      larger[i] = std::move(ring_[(first_ + i) % ring_.size()]);
    ring_ = std::move(larger);
    first_ = 0;
  }

  std::vector<T> ring_;
  std::size_t first_ = 0, size_ = 0;
};

}  // namespace thermocline
