#include "retrieval/select/sketch_units.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace thermocline {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

// What a query head has attended already; nothing where the list does not say.
AttnState steady_of(const ListQuery& list, std::uint32_t head) {
  return head < list.steady.size() ? list.steady[head] : AttnState{};
}

}  // namespace

void SketchUnits::begin(std::size_t units, std::uint32_t heads) {
  count = units;
  for (std::vector<float>* of : {&score, &weight, &rating}) grow(of, count * heads);
  for (std::vector<float>* of : {&size, &mass}) grow(of, count);
  for (std::vector<float>* of : {&beside, &share, &rating_share_}) grow(of, heads);
  grow(&shift, heads + kSketchGroup);
}

void SketchUnits::score_means(const SketchList& list, const SketchIndex& index, std::uint32_t first,
                              std::uint32_t means, std::size_t at) {
  const std::size_t mean_bytes = index.mean_bytes();
  list.cpu.sketch.dot_rows(SketchIndex::kMeanFormat,
                           index.means(list.asked->head) + first * mean_bytes, mean_bytes, means,
                           list.shape.key_dim, list.asked->query,
                           static_cast<int>(list.shape.heads), score.data() + at, count);
}

void SketchUnits::weigh(const SketchList& list) {
  const std::uint32_t heads = list.shape.heads;
  for (std::size_t u = 0; u < count; ++u)
    if (size[u] == 0.0f)  // its mean is nobody's
      for (std::uint32_t h = 0; h < heads; ++h) score[h * count + u] = kNone;
  std::copy_n(score.data(), count * heads, weight.data());
  for (std::uint32_t h = 0; h < heads; ++h) {
    float ignored = 0;
    list.cpu.sketch.weigh(weight.data() + h * count, count, &shift[h], &ignored);
    const AttnState steady = steady_of(*list.asked, h);
    beside[h] = steady.sum > 0.0f
                    ? steady.sum * std::exp(std::min(steady.max - shift[h], kSketchMostAbove))
                    : 0.0f;
    share[h] = 1.0f / all(h);
  }
  for (std::uint32_t h = 0; h < kSketchGroup; ++h) shift[heads + h] = shift[h];
  list.cpu.sketch.add_heads(weight.data(), count, count, share.data(), static_cast<int>(heads),
                            mass.data());
}

void SketchUnits::rate(const SketchList& list, const float* spread, std::size_t units,
                       std::size_t at) {
  for (std::uint32_t h = 0; h < list.shape.heads; ++h) {
    const float by = list.reach[h];
    const float* mean = score.data() + h * count + at;
    float* best = rating.data() + h * count + at;
    for (std::size_t u = 0; u < units; ++u) best[u] = mean[u] + by * spread[u];
  }
}

void SketchUnits::add_ratings(const SketchList& list, std::size_t units) {
  for (std::uint32_t h = 0; h < list.shape.heads; ++h) {
    float max = 0, ignored = 0;
    list.cpu.sketch.weigh(rating.data() + h * count, units, &max, &ignored);
    rating_share_[h] = share[h] * std::exp(std::min(max - shift[h], kSketchMostAbove));
  }
  list.cpu.sketch.add_heads(rating.data(), units, count, rating_share_.data(),
                            static_cast<int>(list.shape.heads), rating.data());
}

}  // namespace thermocline
