// What so many rows take when they are cut into segments.
#pragma once

#include <cstdint>

#include "tiers/block.h"

namespace thermocline {

// The sum of of(rows of a segment) over the longest segments that `rows` fill and what is left of
// them, which may be 0.
template <typename Of>
std::uint64_t over_segments(std::uint64_t rows, const Of& of) {
  return rows / kSegmentRows * of(kSegmentRows) +
         of(static_cast<std::uint32_t>(rows % kSegmentRows));
}

}  // namespace thermocline
