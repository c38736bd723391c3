#include "retrieval/index/flat.h"

#include <cstring>

namespace thermocline {

std::uint64_t FlatCode::bytes(HeadShape shape, std::uint32_t rows) const {
  return std::uint64_t{rows} * shape.key_dim * sizeof(f16);
}

void FlatCode::keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const {
  const std::size_t key_bytes = sealing.rows.layout.key_bytes;
  for (std::uint32_t r = 0; r < sealing.rows.rows; ++r)
    std::memcpy(kept + r * key_bytes, sealing.rows.key(head, r), key_bytes);
}

std::uint64_t FlatCode::score(const BlockQuery& query, KeyScratch*, float* score,
                              std::size_t stride) const {
  const HeadShape shape = query.shape;
  cpu_.sketch.dot_rows(RowFormat::f16, query.kept, shape.key_dim * sizeof(f16), query.rows,
                       shape.key_dim, query.query, static_cast<int>(shape.heads), score, stride);
  return bytes(query.shape, query.rows);
}

}  // namespace thermocline
