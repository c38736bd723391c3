#include "retrieval/index/labels.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/base/buffer.h"
#include "retrieval/scratch.h"

namespace thermocline {
namespace {

std::size_t list_bytes(std::uint32_t channels) {
  return round_up(channels, 2) * sizeof(std::uint16_t);
}

// How large keys are in each channel, of those that are finite.
std::vector<double> strength(const Sealing& sealing, std::uint32_t head) {
  std::vector<double> sum(sealing.shape.key_dim);
  for (std::uint32_t r = 0; r < sealing.rows.rows; ++r)
    for (std::size_t d = 0; d < sum.size(); ++d)
      if (const float key = to_float(sealing.rows.key(head, r)[d]); std::isfinite(key))
        sum[d] += std::abs(key);
  return sum;
}

}  // namespace

std::span<const Parameter<LabelsOptions>> LabelsCode::parameters() {
  static constexpr Parameter<LabelsOptions> kParameters[] = {
      {"channels", &LabelsOptions::channels, 0, 1}, {"bits", &LabelsOptions::bits, 1, kMostPlanes}};
  return kParameters;
}

std::uint32_t LabelsCode::channels(HeadShape shape) const {
  return std::max(1u, static_cast<std::uint32_t>(std::lround(options_.channels * shape.key_dim)));
}

std::uint64_t LabelsCode::bytes(HeadShape shape, std::uint32_t rows) const {
  return list_bytes(channels(shape)) + plane_bytes(rows, channels(shape), options_.bits);
}

void LabelsCode::keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const {
  const std::vector<double> by = strength(sealing, head);
  const std::uint32_t count = channels(sealing.shape), rows = sealing.rows.rows;
  std::vector<std::uint16_t> order(by.size());
  std::iota(order.begin(), order.end(), std::uint16_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::uint16_t a, std::uint16_t b) { return by[a] > by[b]; });
  std::sort(order.begin(), order.begin() + count);
  std::copy_n(order.data(), count, reinterpret_cast<std::uint16_t*>(kept));
  std::vector<float> labels(std::size_t{rows} * count);
  for (std::uint32_t r = 0; r < rows; ++r)
    for (std::uint32_t c = 0; c < count; ++c)
      labels[std::size_t{r} * count + c] = to_float(sealing.rows.key(head, r)[order[c]]);
  write_planes(labels.data(), rows, count, options_.bits, kept + list_bytes(count));
}

const char* LabelsCode::flaw(HeadShape shape, std::uint32_t, const std::byte* kept) const {
  const auto* list = reinterpret_cast<const std::uint16_t*>(kept);
  for (std::uint32_t c = 0; c < channels(shape); ++c)
    if (list[c] >= shape.key_dim) return "names channels that keys have not";
  return nullptr;
}

std::uint64_t LabelsCode::score(const BlockQuery& query, KeyScratch* scratch, float* score,
                                std::size_t stride) const {
  const std::uint32_t count = channels(query.shape), heads = query.shape.heads;
  const auto* list = reinterpret_cast<const std::uint16_t*>(query.kept);
  grow(&scratch->queries, std::size_t{heads} * count);
  for (std::uint32_t h = 0; h < heads; ++h)
    for (std::uint32_t c = 0; c < count; ++c)
      scratch->queries[h * count + c] = query.query[h * query.shape.key_dim + list[c]];
  score_planes(query.kept + list_bytes(count), query.rows, count, options_.bits,
               scratch->queries.data(), heads, &scratch->floats, score, stride);
  return bytes(query.shape, query.rows);
}

}  // namespace thermocline
