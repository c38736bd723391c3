// How a text comes into a timeline.
#pragma once

#include <cstdint>
#include <vector>

namespace thermocline {

// What a session's file has of a text.
struct HeldText {
  std::uint32_t positions = 0;
  // Rows of each segment, in order, as all layers' cuts together would leave them: no layer has
  // more. And rows of each layer's tail.
  std::vector<std::uint32_t> segments = {}, tails = {};
  std::uint32_t longest_segment = 0;  // of all layers
};

// As far as the caller of a cache knows it beforehand. A session of such a text is saved where a
// prefill's span ends, and anywhere after the last of them.
struct Course {
  HeldText resumed = {};
  // Where prefills end that come after those, ascending; single rows follow the last one.
  std::vector<std::uint32_t> reads = {};
  bool is_copied = false;  // it goes nowhere: another cache takes its rows (KvCache::copy)
};

}  // namespace thermocline
