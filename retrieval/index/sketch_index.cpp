#include "retrieval/index/sketch_index.h"

#include <algorithm>
#include <cstring>

#include "retrieval/index/kmeans.h"
#include "tiers/numa.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kLine = 64;  // a head begins on a cache line

std::uint64_t scale_bytes(std::uint32_t rows) { return round_up(rows, kSketchGroup) * sizeof(f16); }

}  // namespace

std::uint64_t SketchIndex::head_bytes(int bits, std::uint32_t rows, std::uint32_t key_dim,
                                      std::uint32_t clusters) {
  const std::uint64_t units = std::uint64_t{clusters} + groups_of(rows, clusters);
  const std::uint64_t of_unit = row_bytes(kMeanFormat, key_dim) + sizeof(float);
  const std::uint64_t starts = (units + 2) * sizeof(std::uint16_t);
  return round_up(sketch_bytes(bits, rows, key_dim) + scale_bytes(rows) + units * of_unit + starts,
                  kLine);
}

// No more clusters and groups than rows: the law of summaries.
std::uint32_t SketchIndex::groups_of(std::uint32_t rows, std::uint32_t clusters) {
  return std::min(static_cast<std::uint32_t>(kmeans_groups(clusters)), rows - clusters);
}

Result<std::shared_ptr<SketchIndex>> SketchIndex::create(int bits, std::uint32_t heads,
                                                         std::uint32_t rows, std::uint32_t key_dim,
                                                         std::uint32_t clusters) {
  TL_CHECK(rows <= kSegmentRows && takes(bits, key_dim));
  std::shared_ptr<SketchIndex> index(new SketchIndex);
  Layout& at = index->layout_;
  at.bits = bits;
  at.rows = rows;
  at.clusters = clusters;
  at.groups = groups_of(rows, clusters);
  const std::uint64_t units = std::uint64_t{clusters} + at.groups;
  at.scales_at = sketch_bytes(bits, rows, key_dim);
  at.mean_bytes = row_bytes(kMeanFormat, key_dim);
  at.means_at = at.scales_at + scale_bytes(rows);
  at.spreads_at = at.means_at + units * at.mean_bytes;
  at.starts_at = at.spreads_at + units * sizeof(float);
  at.head_stride = head_bytes(bits, rows, key_dim, clusters);
  TL_TRY_ASSIGN(index->buffer_, Buffer::create(heads * at.head_stride));
  (void)NumaNodes::of_process().spread(index->buffer_.bytes());
  index->bytes_ = {index->buffer_.data(), index->buffer_.size()};
  std::memset(index->bytes_.data(), 0, index->bytes_.size());
  return index;
}

std::shared_ptr<const SegmentIndex> SketchIndex::copied_to(std::byte* at) const {
  std::shared_ptr<SketchIndex> copy(new SketchIndex);
  copy->bytes_ = {at, bytes_.size()};
  copy->layout_ = layout_;
  return copy;
}

Result<std::shared_ptr<SketchIndex>> SketchIndex::load(int bits, std::uint32_t heads,
                                                       std::uint32_t rows, std::uint32_t key_dim,
                                                       std::uint32_t clusters, RecordReader* in) {
  TL_TRY_ASSIGN(const auto bytes,
                in->raw("index", heads * head_bytes(bits, rows, key_dim, clusters)));
  TL_TRY_ASSIGN(std::shared_ptr<SketchIndex> index, create(bits, heads, rows, key_dim, clusters));
  std::memcpy(index->bytes_.data(), bytes.data(), bytes.size());
  for (std::uint32_t h = 0; h < heads; ++h) {
    const std::span<const std::uint16_t> starts = index->starts(h);
    if (starts.front() != 0 || starts.back() != rows ||
        !std::is_sorted(starts.begin(), starts.end()))
      return in->corrupt("index", "has clusters of head ", h, " that do not cover its rows");
    const std::span<const std::uint16_t> groups = index->group_starts(h);
    if (groups.front() != 0 || (groups.size() > 1 && groups.back() != clusters) ||
        !std::is_sorted(groups.begin(), groups.end()))
      return in->corrupt("index", "has groups of head ", h, " that do not cover its clusters");
  }
  return index;
}

std::uint8_t* SketchIndex::codes(std::uint32_t h) const {
  return reinterpret_cast<std::uint8_t*>(head(h));
}

std::byte* SketchIndex::keys(std::uint32_t h) const { return head(h); }

f16* SketchIndex::scales(std::uint32_t h) const {
  return reinterpret_cast<f16*>(head(h) + layout_.scales_at);
}

std::byte* SketchIndex::means(std::uint32_t h) const { return head(h) + layout_.means_at; }

std::span<float> SketchIndex::spreads(std::uint32_t h) const {
  return {reinterpret_cast<float*>(head(h) + layout_.spreads_at),
          layout_.clusters + layout_.groups};
}

std::span<std::uint16_t> SketchIndex::starts(std::uint32_t h) const {
  return {reinterpret_cast<std::uint16_t*>(head(h) + layout_.starts_at), layout_.clusters + 1};
}

std::span<std::uint16_t> SketchIndex::group_starts(std::uint32_t h) const {
  return {starts(h).data() + layout_.clusters + 1, layout_.groups + 1};
}

}  // namespace thermocline
