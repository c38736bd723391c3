// What those who choose rows compute in: scratch of a thread, and sets with a bit for each member.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "kernels/attend.h"

namespace thermocline {

// Scratch is never made smaller, and keeps what is in it.
template <typename T>
void grow(std::vector<T>* to, std::size_t size) {
  if (to->size() < size) to->resize(size);
}

// The value of what is not to be taken: top_rows (kernels/topk.h) passes over it.
inline constexpr float kNever = -1.0f;

// Words of a set of no more than `members`.
constexpr std::size_t set_words(std::size_t members) {
  return (members + kBlockRows - 1) / kBlockRows;
}
inline bool set_has(std::span<const RowSet> set, std::size_t member) {
  return set[member / kBlockRows] >> member % kBlockRows & 1;
}
inline void set_add(std::span<RowSet> set, std::size_t member) {
  set[member / kBlockRows] |= RowSet{1} << member % kBlockRows;
}
// ORs `count` bits of `from`, from bit `at` on, into `to`, from bit `into` on.
inline void set_add_bits(const RowSet* from, std::size_t at, std::size_t count, RowSet* to,
                         std::size_t into) {
  for (std::size_t i = 0; i < count;) {
    const std::size_t low = (at + i) % kBlockRows, shift = (into + i) % kBlockRows;
    const std::size_t bits = std::min({count - i, kBlockRows - low, kBlockRows - shift});
    const RowSet set = from[(at + i) / kBlockRows] >> low & first_rows(static_cast<int>(bits));
    to[(into + i) / kBlockRows] |= set << shift;
    i += bits;
  }
}

}  // namespace thermocline
