// Memory that is owned: aligned to a page, moved and never copied.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>

#include "kernels/base/error.h"

namespace thermocline {

inline constexpr std::size_t kPageBytes = 4096;  // the unit of reading and of checksums

constexpr std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Page aligned, not initialised. Of 2 MiB or more it is aligned to that, and asks for huge pages
// (advice only).
// create: exhausted, where the system has no memory.
class Buffer {
 public:
  Buffer() = default;
  static Result<Buffer> create(std::size_t bytes);

  std::byte* data() const { return bytes_.get(); }
  std::size_t size() const { return size_; }
  std::span<std::byte> bytes() const { return {bytes_.get(), size_}; }
  template <typename T>
  std::span<T> as() const {
    return {reinterpret_cast<T*>(bytes_.get()), size_ / sizeof(T)};
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte[], Free> bytes_;
  std::size_t size_ = 0;
};

}  // namespace thermocline
