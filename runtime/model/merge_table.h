// Which pairs of pieces merge, how early, and into what: the heart of BPE.
#pragma once

#include <cstdint>
#include <vector>

namespace thermocline {

// Filled once, then read by any thread.
class MergeTable {
 public:
  struct Merge {
    std::uint32_t rank = 0;  // lower merges first
    std::int32_t result = -1;
    bool exists() const { return result >= 0; }
  };

  explicit MergeTable(std::size_t merges);
  // Of a pair that is added twice the first, lower, rank stays. Pieces are not negative.
  void add(std::int32_t left, std::int32_t right, Merge merge);
  Merge find(std::int32_t left, std::int32_t right) const;

 private:
  struct Slot {
    std::uint64_t pair = kEmpty;
    Merge merge;
  };
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
  std::size_t slot_of(std::uint64_t pair) const;
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
};

}  // namespace thermocline
