#include "retrieval/index/moments.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "retrieval/scratch.h"

namespace thermocline {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

std::size_t moments_bytes(HeadShape shape) { return 2 * shape.key_dim * sizeof(f16); }

// Of rows [first, end).
void keep_moments(const Sealing& sealing, std::uint32_t head, std::uint32_t first,
                  std::uint32_t end, f16* mean) {
  constexpr double kLargest = 65504.0;  // f16
  const std::uint32_t dim = sealing.shape.key_dim;
  f16* variance = mean + dim;
  for (std::uint32_t d = 0; d < dim; ++d) {
    double sum = 0, squares = 0;
    for (std::uint32_t r = first; r < end; ++r) sum += to_float(sealing.rows.key(head, r)[d]);
    const double middle = sum / (end - first);
    for (std::uint32_t r = first; r < end; ++r) {
      const double off = to_float(sealing.rows.key(head, r)[d]) - middle;
      squares += off * off;
    }
    mean[d] = to_f16(static_cast<float>(middle));
    variance[d] = to_f16(static_cast<float>(std::min(kLargest, squares / (end - first))));
  }
}

}  // namespace

std::span<const Parameter<MomentsOptions>> MomentsCode::parameters() {
  static constexpr Parameter<MomentsOptions> kParameters[] = {
      {"block", &MomentsOptions::block, 2, 256},
      {"alpha", &MomentsOptions::alpha, 0, 100},
      {"group_blocks", &MomentsOptions::group_blocks, 0, kSegmentRows},
      {"candidates", &MomentsOptions::candidates, 1, 1000, {}, {}, "group_blocks"}};
  return kParameters;
}

std::size_t MomentsCode::looked_at(std::uint32_t wanted_rows) const {
  if (group_rows() == 0) return 0;
  const double candidates = options_.candidates * wanted_rows;
  return std::max<std::size_t>(1, static_cast<std::size_t>(std::ceil(candidates / group_rows())));
}

std::uint64_t MomentsCode::bytes(HeadShape shape, std::uint32_t rows) const {
  return std::uint64_t{groups(rows) + units(rows)} * moments_bytes(shape);
}

void MomentsCode::keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const {
  const std::uint32_t rows = sealing.rows.rows;
  auto* moments = reinterpret_cast<f16*>(kept);
  for (const std::uint32_t together : {group_rows(), block()})
    for (std::uint32_t first = 0; together > 0 && first < rows; first += together) {
      keep_moments(sealing, head, first, std::min(rows, first + together), moments);
      moments += 2 * sealing.shape.key_dim;
    }
}

std::optional<UnitFormat> MomentsCode::unit_format() const {
  return UnitFormat{.score = UnitScore::moments, .alpha = static_cast<float>(options_.alpha)};
}

// Behind the groups: a device looks at all blocks.
void MomentsCode::locate(HeadShape shape, std::uint32_t rows, const std::byte* kept,
                         IndexedRows* out) const {
  out->unit_keys = kept + groups(rows) * moments_bytes(shape);
  out->unit_key_bytes = static_cast<std::uint32_t>(moments_bytes(shape));
}

void MomentsCode::score_moments(const BlockQuery& query, const std::byte* moments,
                                std::size_t count, const float* squared, float* variance,
                                float* score, std::size_t stride) const {
  const std::uint32_t dim = query.shape.key_dim;
  const std::size_t bytes = moments_bytes(query.shape);
  const int heads = static_cast<int>(query.shape.heads);
  cpu_.sketch.dot_rows(RowFormat::f16, moments, bytes, count, dim, query.query, heads, score,
                       stride);
  cpu_.sketch.dot_rows(RowFormat::f16, moments + bytes / 2, bytes, count, dim, squared, heads,
                       variance, count);
  const auto alpha = static_cast<float>(options_.alpha);
  for (std::size_t h = 0; h < query.shape.heads; ++h)
    for (std::size_t u = 0; u < count; ++u)
      score[h * stride + u] += alpha * std::sqrt(variance[h * count + u]);
}

std::uint64_t MomentsCode::score(const BlockQuery& query, KeyScratch* scratch, float* score,
                                 std::size_t stride) const {
  const std::size_t heads = query.shape.heads, floats = heads * query.shape.key_dim;
  const std::size_t groups = this->groups(query.rows), blocks = units(query.rows);
  grow(&scratch->queries, floats);
  grow(&scratch->floats, heads * (blocks + groups) + groups);
  float* squared = scratch->queries.data();
  float* variance = scratch->floats.data();
  for (std::size_t i = 0; i < floats; ++i) squared[i] = query.query[i] * query.query[i];

  const std::size_t bytes = moments_bytes(query.shape);
  const std::byte* of_blocks = query.kept + groups * bytes;
  const std::size_t looked_at = this->looked_at(query.wanted_rows);
  if (looked_at >= groups) {
    score_moments(query, of_blocks, blocks, squared, variance, score, stride);
    return blocks * bytes;
  }
  float* group_score = variance + heads * blocks;  // [heads][groups]
  float* best = group_score + heads * groups;      // [groups]: by any query head, less its most
  score_moments(query, query.kept, groups, squared, variance, group_score, groups);
  std::fill_n(best, groups, kNone);
  for (std::size_t h = 0; h < heads; ++h) {
    const float* of_head = group_score + h * groups;
    float most = kNone;
    for (std::size_t g = 0; g < groups; ++g) most = std::max(most, of_head[g]);
    for (std::size_t g = 0; g < groups; ++g) best[g] = std::max(best[g], of_head[g] - most);
  }
  scratch->ids.resize(groups);
  std::iota(scratch->ids.begin(), scratch->ids.end(), 0u);
  std::nth_element(scratch->ids.begin(),
                   scratch->ids.begin() + static_cast<std::ptrdiff_t>(looked_at),
                   scratch->ids.end(), [&](std::uint32_t a, std::uint32_t b) {
                     return best[a] != best[b] ? best[a] > best[b] : a < b;
                   });

  for (std::size_t h = 0; h < heads; ++h) std::fill_n(score + h * stride, blocks, kNone);
  std::size_t scored = groups;
  for (const std::uint32_t g : std::span(scratch->ids).first(looked_at)) {
    const std::size_t first = std::size_t{g} * options_.group_blocks;
    const std::size_t count = std::min<std::size_t>(options_.group_blocks, blocks - first);
    score_moments(query, of_blocks + first * bytes, count, squared, variance, score + first,
                  stride);
    scored += count;
  }
  return scored * bytes;
}

}  // namespace thermocline
