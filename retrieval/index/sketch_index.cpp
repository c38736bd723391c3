#include "retrieval/index/sketch_index.h"

#include <cstring>

namespace thermocline {
namespace {

constexpr std::uint64_t kLine = 64;  // a head begins on a cache line

std::uint64_t scale_bytes(std::uint32_t rows) { return round_up(rows, kSketchGroup) * sizeof(f16); }

}  // namespace

std::uint64_t SketchIndex::head_bytes(std::uint32_t rows, std::uint32_t key_dim,
                                      std::uint32_t clusters) {
  const std::uint64_t starts = (std::uint64_t{clusters} + 1) * sizeof(std::uint16_t);
  const std::uint64_t spreads = std::uint64_t{clusters} * sizeof(float);
  return round_up(spreads + sketch_bytes(rows, key_dim) + scale_bytes(rows) + starts, kLine);
}

Result<std::shared_ptr<SketchIndex>> SketchIndex::create(std::uint32_t heads, std::uint32_t rows,
                                                         std::uint32_t key_dim,
                                                         std::uint32_t clusters) {
  TL_CHECK(rows <= kSegmentRows && key_dim % 16 == 0);
  std::shared_ptr<SketchIndex> index(new SketchIndex);
  index->rows_ = rows;
  index->clusters_ = clusters;
  index->scales_at_ = sketch_bytes(rows, key_dim);
  index->spreads_at_ = index->scales_at_ + scale_bytes(rows);
  index->starts_at_ = index->spreads_at_ + clusters * sizeof(float);
  index->head_stride_ = head_bytes(rows, key_dim, clusters);
  TL_TRY_ASSIGN(index->buffer_, Buffer::create(heads * index->head_stride_));
  std::memset(index->buffer_.data(), 0, index->buffer_.size());
  return index;
}

std::uint8_t* SketchIndex::codes(std::uint32_t h) const {
  return reinterpret_cast<std::uint8_t*>(head(h));
}

f16* SketchIndex::scales(std::uint32_t h) const {
  return reinterpret_cast<f16*>(head(h) + scales_at_);
}

std::span<float> SketchIndex::spreads(std::uint32_t h) const {
  return {reinterpret_cast<float*>(head(h) + spreads_at_), clusters_};
}

std::span<std::uint16_t> SketchIndex::starts(std::uint32_t h) const {
  return {reinterpret_cast<std::uint16_t*>(head(h) + starts_at_), clusters_ + 1};
}

}  // namespace thermocline
