// Memory that is cut to pieces.
#pragma once

#include <cstddef>

namespace thermocline::cuda {

// Cuts them from `memory`, each aligned for the widest load; or, of none, counts their bytes.
class Pieces {
 public:
  explicit Pieces(std::byte* memory) : memory_(memory) {}
  template <typename T>
  void take(std::size_t count, T** piece) {
    constexpr std::size_t kAlignment = 256;
    if (memory_ != nullptr) *piece = reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  std::size_t bytes_ = 0;
};

}  // namespace thermocline::cuda
