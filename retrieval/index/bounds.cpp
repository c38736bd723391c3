#include "retrieval/index/bounds.h"

#include <algorithm>

#include "retrieval/scratch.h"

namespace thermocline {

std::span<const Parameter<BoundsOptions>> BoundsCode::parameters() {
  static constexpr Parameter<BoundsOptions> kParameters[] = {
      {"block", &BoundsOptions::block, 2, 256}};
  return kParameters;
}

std::uint64_t BoundsCode::bytes(HeadShape shape, std::uint32_t rows) const {
  return std::uint64_t{units(rows)} * 2 * shape.key_dim * sizeof(f16);
}

void BoundsCode::keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const {
  const std::uint32_t dim = sealing.shape.key_dim, rows = sealing.rows.rows;
  auto* least = reinterpret_cast<f16*>(kept);
  for (std::uint32_t u = 0; u < units(rows); ++u, least += 2 * dim) {
    f16* most = least + dim;
    std::copy_n(sealing.rows.key(head, u * block()), dim, least);
    std::copy_n(least, dim, most);
    for (std::uint32_t r = u * block() + 1; r < std::min(rows, (u + 1) * block()); ++r) {
      const f16* key = sealing.rows.key(head, r);
      for (std::uint32_t d = 0; d < dim; ++d) {
        if (to_float(key[d]) < to_float(least[d])) least[d] = key[d];
        if (to_float(key[d]) > to_float(most[d])) most[d] = key[d];
      }
    }
  }
}

std::optional<UnitFormat> BoundsCode::unit_format() const {
  return UnitFormat{.score = UnitScore::bounds};
}

void BoundsCode::locate(HeadShape shape, std::uint32_t, const std::byte* kept,
                        IndexedRows* out) const {
  out->unit_keys = kept;
  out->unit_key_bytes = 2 * shape.key_dim * sizeof(f16);
}

// max(q * least, q * most) is q * most where q is positive, else q * least: two products of rows,
// with the halves of the query.
std::uint64_t BoundsCode::score(const BlockQuery& query, KeyScratch* scratch, float* score,
                                std::size_t stride) const {
  const HeadShape shape = query.shape;
  const std::size_t blocks = units(query.rows), floats = shape.heads * shape.key_dim;
  grow(&scratch->floats, 2 * floats + shape.heads * blocks);
  float* negative = scratch->floats.data();
  float* positive = negative + floats;
  float* least_score = positive + floats;
  for (std::size_t i = 0; i < floats; ++i) {
    negative[i] = std::min(query.query[i], 0.0f);
    positive[i] = std::max(query.query[i], 0.0f);
  }
  const std::size_t side = shape.key_dim * sizeof(f16);
  const int heads = static_cast<int>(shape.heads);
  cpu_.sketch.dot_rows(RowFormat::f16, query.kept, 2 * side, blocks, shape.key_dim, negative, heads,
                       least_score, blocks);
  cpu_.sketch.dot_rows(RowFormat::f16, query.kept + side, 2 * side, blocks, shape.key_dim, positive,
                       heads, score, stride);
  for (std::size_t h = 0; h < shape.heads; ++h)
    for (std::size_t u = 0; u < blocks; ++u) score[h * stride + u] += least_score[h * blocks + u];
  return bytes(query.shape, query.rows);
}

}  // namespace thermocline
