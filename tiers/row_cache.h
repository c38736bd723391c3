// The rows of one KV head of one layer that were lately read from the disk, as bytes identical to
// their home's. The unit is the row: a selection touches most blocks, but the same few rows step
// after step, so a cache of rows serves twice what a cache of blocks of its size does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace thermocline {

// Rows are numbered densely within the head (every segment has a range). Least recently used rows
// make room, but never one that was touched in the current step: others may be reading it. One
// writer; memory for the slots is the caller's.
class RowCache {
 public:
  RowCache() = default;
  // `slots`: capacity * row_bytes bytes that outlive the cache.
  RowCache(std::byte* slots, std::uint32_t capacity, std::uint32_t row_bytes);

  // What a cache of `capacity` rows among `rows` numbers takes beside its slots.
  static std::uint64_t table_bytes(std::uint32_t capacity, std::uint64_t rows) {
    return capacity == 0 ? 0 : capacity * sizeof(Slot) + rows * sizeof(std::uint32_t);
  }
  std::uint32_t capacity() const { return capacity_; }
  // No slot is empty: another row would push one out.
  bool full() const { return held_ == capacity_; }
  // Row numbers below `rows` may be asked for from now on.
  void grow(std::uint32_t rows);
  void begin_step() { ++step_; }

  // Where the row is, now the most recently used; null: not here.
  const std::byte* find(std::uint32_t row);
  // A slot to copy the row into; null when every slot was touched in this step, or the row is here.
  std::byte* insert(std::uint32_t row);
  // Forgets the rows [first, first + count).
  void forget(std::uint32_t first, std::uint32_t count);

 private:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  struct Slot {
    std::uint32_t row = kNone, newer = kNone, older = kNone;
    std::uint64_t step = 0;
  };
  void unlink(std::uint32_t slot);
  void make_newest(std::uint32_t slot);
  void make_oldest(std::uint32_t slot);

  std::byte* bytes_ = nullptr;
  std::uint32_t capacity_ = 0, row_bytes_ = 0;
  std::uint64_t step_ = 1;
  std::uint32_t newest_ = kNone, oldest_ = kNone;
  std::uint32_t used_ = 0, held_ = 0;  // slots that ever held a row; that hold one now
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> slot_of_row_;
};

}  // namespace thermocline
