#include "retrieval/index/moments.h"

#include <algorithm>
#include <cmath>

namespace thermocline {

std::span<const Parameter<MomentsOptions>> MomentsCode::parameters() {
  static constexpr Parameter<MomentsOptions> kParameters[] = {
      {"block", &MomentsOptions::block, 2, 256}, {"alpha", &MomentsOptions::alpha, 0, 100}};
  return kParameters;
}

std::uint64_t MomentsCode::bytes(HeadShape shape, std::uint32_t rows) const {
  return std::uint64_t{units(rows)} * 2 * shape.key_dim * sizeof(f16);
}

void MomentsCode::keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const {
  constexpr double kLargest = 65504.0;  // f16
  const std::uint32_t dim = sealing.shape.key_dim, rows = sealing.rows.rows;
  auto* mean = reinterpret_cast<f16*>(kept);
  for (std::uint32_t u = 0; u < units(rows); ++u, mean += 2 * dim) {
    f16* variance = mean + dim;
    const std::uint32_t first = u * block(), end = std::min(rows, first + block());
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
}

void MomentsCode::score(const BlockQuery& query, KeyScratch* scratch, float* score,
                        std::size_t stride) const {
  const HeadShape shape = query.shape;
  const std::size_t blocks = units(query.rows), floats = shape.heads * shape.key_dim;
  if (scratch->floats.size() < floats + shape.heads * blocks)
    scratch->floats.resize(floats + shape.heads * blocks);
  float* squared = scratch->floats.data();
  float* variance = squared + floats;
  for (std::size_t i = 0; i < floats; ++i) squared[i] = query.query[i] * query.query[i];
  const std::size_t side = shape.key_dim * sizeof(f16);
  const int heads = static_cast<int>(shape.heads);
  cpu_.sketch.dot_rows(RowFormat::f16, query.kept, 2 * side, blocks, shape.key_dim, query.query,
                       heads, score, stride);
  cpu_.sketch.dot_rows(RowFormat::f16, query.kept + side, 2 * side, blocks, shape.key_dim, squared,
                       heads, variance, blocks);
  const auto alpha = static_cast<float>(options_.alpha);
  for (std::size_t h = 0; h < shape.heads; ++h)
    for (std::size_t u = 0; u < blocks; ++u)
      score[h * stride + u] += alpha * std::sqrt(variance[h * blocks + u]);
}

}  // namespace thermocline
