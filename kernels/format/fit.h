// What the rows of a segment share on one side (scales of groups of rows, a basis, their
// coefficients in it), as the kernels read it, and where a KV head's rows are among them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/rotation.h"

namespace thermocline {

// A view: bytes that someone else owns, laid out as the format's file says, and as large as it says
// for so many heads and rows. Rows are told apart by number: as they are stored in the segment.
struct SideFit {
  const std::byte* common = nullptr;  // of several segments; null: the format has none
  const std::byte* own = nullptr;     // of this segment alone; null: the same
  std::uint32_t heads = 0, rows = 0;  // KV heads that the parts are of; rows in each
  std::uint32_t head = 0;             // of those, whose rows are read
  std::uint32_t first_position = 0;
  const std::uint16_t* offset = nullptr;  // [rows] of that head, from there; null: 0, 1, 2 ...
  const Rotation* rotation = nullptr;     // of a key by its position; null: there is none

  explicit operator bool() const { return common || own; }
  std::uint32_t offset_of(std::uint32_t number) const { return offset ? offset[number] : number; }
};

}  // namespace thermocline
