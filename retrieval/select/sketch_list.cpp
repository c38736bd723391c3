#include "retrieval/select/sketch_list.h"

#include <algorithm>
#include <cmath>

namespace thermocline {

float sum_of_products(const float* a, const float* b, std::size_t n) {
  float lane[4] = {};
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (std::size_t j = 0; j < 4; ++j) lane[j] += a[i + j] * b[i + j];
  for (; i < n; ++i) lane[0] += a[i] * b[i];
  return lane[0] + lane[1] + (lane[2] + lane[3]);
}

void SketchList::begin(HeadShape of, const ListQuery& list, const Workers& with) {
  shape = of;
  asked = &list;
  workers = &with;
  indexes.clear();
  rows = 0;
  blocks = clusters = groups = 0;
  for (const Run& run : list.runs) {
    const auto* index = dynamic_cast<const SketchIndex*>(run.index.get());
    indexes.push_back(index);
    if (!index) continue;
    TL_CHECK(run.summaries && index->rows() == run.rows->rows &&
             index->clusters() + index->groups() == run.summaries->rows);
    rows += index->rows();
    blocks += run.rows->blocks();
    clusters += index->clusters();
    groups += index->groups();
  }
  const SketchOptions::Budget budgets = options.budget(list.length, list.steady_rows);
  budget = budgets.read;
  coded_budget = budgets.coded;
  everything = budget >= rows;
}

void SketchList::prepare_queries() {
  grow(&rotated_, shape.key_dim);
  grow(&codes_, std::size_t{shape.heads} * shape.key_dim);
  grow(&queries, shape.heads);
  grow(&reach, shape.heads);
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    const float* of = asked->query + std::size_t{h} * shape.key_dim;
    queries[h] =
        cpu.sketch.prepare(of, shape.key_dim, rotated_.data(), codes_.data() + h * shape.key_dim);
    reach[h] =
        static_cast<float>(options.reach) * std::sqrt(sum_of_products(of, of, shape.key_dim));
  }
}

double SketchList::candidates() const {
  return std::max<double>(options.candidates * budget, options.least_candidates);
}

}  // namespace thermocline
