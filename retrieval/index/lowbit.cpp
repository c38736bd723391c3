#include "retrieval/index/lowbit.h"

namespace thermocline {

std::span<const Parameter<LowbitOptions>> LowbitCode::parameters() {
  static constexpr Parameter<LowbitOptions> kParameters[] = {
      {"bits", &LowbitOptions::bits, 1, kMostPlanes}};
  return kParameters;
}

std::uint64_t LowbitCode::bytes(HeadShape shape, std::uint32_t rows) const {
  return plane_bytes(rows, shape.key_dim, options_.bits);
}

void LowbitCode::keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const {
  const std::size_t dim = sealing.shape.key_dim;
  const std::uint32_t rows = sealing.rows.rows;
  std::vector<float> keys(rows * dim);
  for (std::uint32_t r = 0; r < rows; ++r)
    cpu_.dense.from_half(sealing.rows.key(head, r), dim, keys.data() + r * dim);
  write_planes(keys.data(), rows, sealing.shape.key_dim, options_.bits, kept);
}

std::uint64_t LowbitCode::score(const BlockQuery& query, KeyScratch* scratch, float* score,
                                std::size_t stride) const {
  score_planes(query.kept, query.rows, query.shape.key_dim, options_.bits, query.query,
               query.shape.heads, &scratch->floats, score, stride);
  return bytes(query.shape, query.rows);
}

}  // namespace thermocline
