// How a text comes into a timeline.
#pragma once

#include <cstdint>
#include <vector>

namespace thermocline {

// As far as the caller of a cache knows it beforehand. A session of such a text is saved where a
// prefill's span ends, and anywhere after the last of them.
struct Course {
  // Positions that a session's file has already, in segments of any length.
  std::uint32_t resumed = 0;
  // Where prefills end that come after those, ascending; single rows follow the last one.
  std::vector<std::uint32_t> reads = {};
};

}  // namespace thermocline
