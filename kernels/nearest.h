// Which of many centres a row has the largest dot product with: the inner loop of k-means.
//
// Centres are given in panels of 16, transposed: [panels][dim][16] floats. Lanes past the last
// centre hold a copy of it, which never wins against it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace thermocline {

inline constexpr std::size_t kCentrePanel = 16;

struct NearestOps {
  // nearest[r] = the centre with the largest dot product with row r, the lower one of equals;
  // rows are [count][dim]. At most 2^24 centres.
  void (*nearest)(const float* rows, std::size_t count, std::size_t dim, const float* panels,
                  std::size_t centres, std::uint32_t* nearest);
};

}  // namespace thermocline
