// What the sketch selector keeps of a segment: for each KV head the mean keys of its clusters and
// of groups of them, where these begin and how far they spread, and the codes and scales of its
// rows; or in place of the codes the keys themselves.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "kernels/base/buffer.h"
#include "kernels/sketch.h"
#include "tiers/block.h"
#include "tiers/record.h"

namespace thermocline {

// Filled at sealing, by threads for rows of their own; immutable afterwards, when any may read it.
class SketchIndex final : public SegmentIndex {
 public:
  // How mean keys are coded: their rounding is nothing beside their rows' spread.
  static constexpr RowFormat kMeanFormat = RowFormat::int8;
  // So many bits a channel are no code: keys are kept as they are.
  static constexpr int kKeyBits = 16;
  static constexpr RowFormat kKeyFormat = RowFormat::f16;
  // Of which codes scales are: beside keys, of those of 2 bits, so that clusters are rated as
  // there.
  static constexpr int scale_bits(int bits) { return bits == kKeyBits ? 2 : bits; }
  // Whether keys of so many channels can be kept in so many bits each.
  static constexpr bool takes(int bits, std::size_t key_dim) {
    return sketch_takes(scale_bits(bits), key_dim);
  }

  // Zeroed. takes(bits, key_dim); rows at most kSegmentRows.
  static Result<std::shared_ptr<SketchIndex>> create(int bits, std::uint32_t heads,
                                                     std::uint32_t rows, std::uint32_t key_dim,
                                                     std::uint32_t clusters);
  // Of one head.
  static std::uint64_t head_bytes(int bits, std::uint32_t rows, std::uint32_t key_dim,
                                  std::uint32_t clusters);

  // What save() wrote of an index of this shape. corrupt: it is not that.
  static Result<std::shared_ptr<SketchIndex>> load(int bits, std::uint32_t heads,
                                                   std::uint32_t rows, std::uint32_t key_dim,
                                                   std::uint32_t clusters, RecordReader* in);

  std::uint64_t bytes() const override { return bytes_.size(); }
  std::span<const std::byte> whole() const override { return bytes_; }
  std::shared_ptr<const SegmentIndex> copied_to(std::byte* at) const override;
  void save(RecordWriter* out) const { out->raw(bytes_); }
  int bits() const { return layout_.bits; }
  bool keeps_keys() const { return bits() == kKeyBits; }
  std::uint32_t rows() const { return layout_.rows; }
  std::uint32_t clusters() const { return layout_.clusters; }
  // About the square root of the clusters, which a step asks first where clusters are many.
  std::uint32_t groups() const { return layout_.groups; }
  static std::uint32_t groups_of(std::uint32_t rows, std::uint32_t clusters);

  // The mean keys of the clusters, then of the groups, mean_bytes() apart: beside nothing else,
  // since a step reads all of those of a level.
  std::byte* means(std::uint32_t head) const;
  std::uint32_t mean_bytes() const { return layout_.mean_bytes; }
  // Whole groups of kSketchGroup rows, as kernels/sketch.h lays them out. None if it keeps keys.
  std::uint8_t* codes(std::uint32_t head) const;
  // If so, in their place: the key of each row, sketch_row_bytes(kKeyBits, key_dim) apart.
  std::byte* keys(std::uint32_t head) const;
  // [rows, in whole groups]: the scale of each row's codes.
  f16* scales(std::uint32_t head) const;
  // [clusters]: the largest scale of a cluster's rows: how far they stray from its mean, a channel.
  // [groups]: then the same of groups, and how far their clusters' means stray from theirs.
  std::span<float> spreads(std::uint32_t head) const;
  // [clusters + 1]: cluster c is the rows [starts[c], starts[c + 1]), maybe none.
  std::span<std::uint16_t> starts(std::uint32_t head) const;
  // [groups + 1]: group g is the clusters [group_starts[g], group_starts[g + 1]), maybe none.
  std::span<std::uint16_t> group_starts(std::uint32_t head) const;

 private:
  SketchIndex() = default;
  std::byte* head(std::uint32_t h) const { return bytes_.data() + h * layout_.head_stride; }

  struct Layout {  // of a head
    std::uint64_t head_stride = 0, scales_at = 0, means_at = 0, spreads_at = 0, starts_at = 0;
    int bits = 0;  // a channel
    std::uint32_t rows = 0, clusters = 0, groups = 0, mean_bytes = 0;
  };

  Buffer buffer_;  // none of a copy
  // [heads] codes or keys, scales, means, spreads, starts of clusters, groups
  std::span<std::byte> bytes_;
  Layout layout_;
};

}  // namespace thermocline
