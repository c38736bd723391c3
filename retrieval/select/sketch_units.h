// Means of rows, of clusters or of groups of them, and what attention their rows have by them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "retrieval/select/sketch_list.h"

namespace thermocline {

// Filled for one list after the other: begin, then sizes and scores of all, then weigh.
struct SketchUnits {
  // Room for so many units; what is in them is what was left there.
  void begin(std::size_t units, std::uint32_t heads);
  // To `score` of units [at, at + means) the scores of an index's means from `first` on.
  void score_means(const SketchList& list, const SketchIndex& index, std::uint32_t first,
                   std::uint32_t means, std::size_t at);
  // Each unit's mass a row, as its mean estimates it, summed over the query heads. Scores are taken
  // relative to the best unit's from here on.
  void weigh(const SketchList& list);
  // All weight of a query head: of its steady rows, and of each unit's `size` rows.
  float all(std::uint32_t head) const {
    return beside[head] + sum_of_products(weight.data() + head * count, size.data(), count);
  }

  // How much mass a unit's best row may have, summed over the query heads: a row's score strays
  // from its unit's, by so much the more as its residual is longer. First of `units` from `at` on,
  // as scores; then, of the first `units`, as masses, to rating[0, units).
  void rate(const SketchList& list, const float* spread, std::size_t units, std::size_t at);
  void add_ratings(const SketchList& list, std::size_t units);

  std::size_t count = 0;
  std::vector<float> size;           // [count]: its rows
  std::vector<float> score, weight;  // [heads][count]; weight: e^(score - shift)
  std::vector<float> mass;           // [count]: of one row
  std::vector<float> rating;         // [heads][count], then [count]
  std::vector<float> shift;          // [heads], and again up to heads + kSketchGroup
  std::vector<float> beside, share;  // [heads]: weight of steady rows; one over all weight

 private:
  std::vector<float> rating_share_;  // [heads]
};

}  // namespace thermocline
