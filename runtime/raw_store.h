// Rows as they are before they are sealed: sinks, a tail, a span.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/base/buffer.h"
#include "kernels/base/error.h"
#include "tiers/block.h"

namespace thermocline {

// Raw rows in position order, [heads][capacity] records.
class RawStore {
 public:
  RawStore() = default;
  static Result<RawStore> create(RowLayout layout, std::uint32_t heads, std::uint32_t capacity) {
    RawStore store;
    TL_TRY(store.reshape(layout, heads, capacity));
    return store;
  }
  // To another shape; what it held is lost. Allocates only when it grows.
  Status reshape(RowLayout layout, std::uint32_t heads, std::uint32_t capacity) {
    if (bytes_for(layout, heads, capacity) > bytes_.size()) {
      TL_TRY_ASSIGN(bytes_, Buffer::create(bytes_for(layout, heads, capacity)));
    }
    layout_ = layout;
    heads_ = heads;
    capacity_ = capacity;
    return {};
  }
  static std::uint64_t bytes_for(RowLayout layout, std::uint32_t heads, std::uint32_t capacity) {
    return std::uint64_t{layout.bytes()} * heads * capacity;
  }

  std::uint32_t capacity() const { return capacity_; }
  std::byte* row(std::uint32_t head, std::uint32_t r) const {
    return bytes_.data() + (std::size_t{head} * capacity_ + r) * layout_.bytes();
  }
  // The rows [0, rows), the first of which is at `first_position`.
  RawRows view(std::uint32_t first_position, std::uint32_t rows) const {
    return {layout_, heads_,        first_position,
            rows,    bytes_.data(), std::size_t{capacity_} * layout_.bytes()};
  }
  // Copies `rows` of `from`, from its row `first` on, to the rows from `at` on.
  void copy(const RawRows& from, std::uint32_t first, std::uint32_t rows, std::uint32_t at) const {
    TL_CHECK(at + rows <= capacity_ && first + rows <= from.rows);
    if (rows == 0) return;  // a store without capacity has no memory to point to
    for (std::uint32_t h = 0; h < heads_; ++h)
      std::memmove(row(h, at), from.row(h, first), std::size_t{rows} * layout_.bytes());
  }

 private:
  RowLayout layout_;
  std::uint32_t heads_ = 0, capacity_ = 0;
  Buffer bytes_;
};

}  // namespace thermocline
