// Which of a prefill's queries a selector that watches them sees when a segment is formed: those of
// positions on a grid, from the segment's first position (what is before it does not see it) to the
// end of the span. A function of positions alone, so no answer depends on how much memory there is.
#pragma once

#include <algorithm>
#include <cstdint>

namespace thermocline {

struct QuerySample {
  // Of every 16th position where that is not too many: a graph of keys finds no more with twice as
  // many (tests/bench/graph_bench.cpp), and the nearest keys of each are most of its forming.
  static constexpr std::uint32_t kLeastStride = 16, kMost = 512;

  static constexpr std::uint32_t kMostLast = 32;  // that a fitter asks for

  std::uint32_t first = 0, stride = kLeastStride, count = 0;

  static QuerySample of(std::uint32_t from, std::uint32_t end) {
    QuerySample sample;
    while ((std::uint64_t{end} - std::min(from, end)) / sample.stride >= kMost) sample.stride *= 2;
    sample.first = (from + sample.stride - 1) / sample.stride * sample.stride;
    if (sample.first < end) sample.count = (end - sample.first - 1) / sample.stride + 1;
    return sample;
  }
  // Of no span of so many positions are there more.
  static constexpr std::uint32_t most(std::uint32_t positions) {
    return std::min(kMost, (positions + kLeastStride - 1) / kLeastStride);
  }

  // The last ones of a span that ends at `end`, each of them.
  static QuerySample last(std::uint32_t positions, std::uint32_t end) {
    const std::uint32_t count = std::min(kMostLast, positions);
    return {end - count, 1, count};
  }

  std::uint32_t position(std::uint32_t i) const { return first + i * stride; }
};

}  // namespace thermocline
