#include "retrieval/index/sketch_index.h"

#include <algorithm>
#include <cstring>

#include "tiers/numa.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kLine = 64;  // a head begins on a cache line

std::uint64_t scale_bytes(std::uint32_t rows) { return round_up(rows, kSketchGroup) * sizeof(f16); }

}  // namespace

std::uint64_t SketchIndex::head_bytes(int bits, std::uint32_t rows, std::uint32_t key_dim,
                                      std::uint32_t clusters) {
  const std::uint64_t starts = (std::uint64_t{clusters} + 1) * sizeof(std::uint16_t);
  const std::uint64_t of_cluster = row_bytes(kMeanFormat, key_dim) + sizeof(float);
  return round_up(
      sketch_bytes(bits, rows, key_dim) + scale_bytes(rows) + clusters * of_cluster + starts,
      kLine);
}

Result<std::shared_ptr<SketchIndex>> SketchIndex::create(int bits, std::uint32_t heads,
                                                         std::uint32_t rows, std::uint32_t key_dim,
                                                         std::uint32_t clusters) {
  TL_CHECK(rows <= kSegmentRows && sketch_takes(bits, key_dim));
  std::shared_ptr<SketchIndex> index(new SketchIndex);
  index->bits_ = bits;
  index->rows_ = rows;
  index->clusters_ = clusters;
  index->scales_at_ = sketch_bytes(bits, rows, key_dim);
  index->mean_bytes_ = row_bytes(kMeanFormat, key_dim);
  index->means_at_ = index->scales_at_ + scale_bytes(rows);
  index->spreads_at_ = index->means_at_ + std::uint64_t{clusters} * index->mean_bytes_;
  index->starts_at_ = index->spreads_at_ + clusters * sizeof(float);
  index->head_stride_ = head_bytes(bits, rows, key_dim, clusters);
  TL_TRY_ASSIGN(index->buffer_, Buffer::create(heads * index->head_stride_));
  (void)NumaNodes::of_process().spread(index->buffer_.bytes());
  std::memset(index->buffer_.data(), 0, index->buffer_.size());
  return index;
}

Result<std::shared_ptr<SketchIndex>> SketchIndex::load(int bits, std::uint32_t heads,
                                                       std::uint32_t rows, std::uint32_t key_dim,
                                                       std::uint32_t clusters, RecordReader* in) {
  TL_TRY_ASSIGN(const auto bytes,
                in->raw("index", heads * head_bytes(bits, rows, key_dim, clusters)));
  TL_TRY_ASSIGN(std::shared_ptr<SketchIndex> index, create(bits, heads, rows, key_dim, clusters));
  std::memcpy(index->buffer_.data(), bytes.data(), bytes.size());
  for (std::uint32_t h = 0; h < heads; ++h) {
    const std::span<const std::uint16_t> starts = index->starts(h);
    if (starts.front() != 0 || starts.back() != rows ||
        !std::is_sorted(starts.begin(), starts.end()))
      return in->corrupt("index", "has clusters of head ", h, " that do not cover its rows");
  }
  return index;
}

std::uint8_t* SketchIndex::codes(std::uint32_t h) const {
  return reinterpret_cast<std::uint8_t*>(head(h));
}

f16* SketchIndex::scales(std::uint32_t h) const {
  return reinterpret_cast<f16*>(head(h) + scales_at_);
}

std::byte* SketchIndex::means(std::uint32_t h) const { return head(h) + means_at_; }

std::span<float> SketchIndex::spreads(std::uint32_t h) const {
  return {reinterpret_cast<float*>(head(h) + spreads_at_), clusters_};
}

std::span<std::uint16_t> SketchIndex::starts(std::uint32_t h) const {
  return {reinterpret_cast<std::uint16_t*>(head(h) + starts_at_), clusters_ + 1};
}

}  // namespace thermocline
