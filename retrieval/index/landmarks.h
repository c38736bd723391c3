// landmarks: the mean of the keys of a chunk of rows. Chunks with a key that is far from their mean
// in direction are outliers, which no mean stands for: they are always read.
//
// ShadowKV (arXiv 2410.21465): chunks of 8; 48 outliers of the 15,616 chunks of 122K rows, which is
// the share of them here, rounded to whole chunks in each segment. A segment of few rows has none.
//
// Kept: [chunks][key_dim] means, f16; then [chunks] bytes, 1 for an outlier.
#pragma once

#include "kernels/cpu/table.h"
#include "retrieval/index/block_index.h"
#include "tiers/parameter.h"

namespace thermocline {

struct LandmarksOptions {
  std::uint32_t chunk = 8;  // rows
  double outliers = 0.003;  // of the chunks of a segment, those whose worst key has the least
                            // cosine to the mean; a key that is not finite is worst of all
};

class LandmarksCode final : public BlockCode {
 public:
  using Options = LandmarksOptions;
  static std::span<const Parameter<Options>> parameters();
  LandmarksCode(const Options& options, const CpuTable& cpu) : options_(options), cpu_(cpu) {}

  std::string_view name() const override { return "landmarks"; }
  std::uint32_t block() const override { return options_.chunk; }
  std::uint64_t bytes(HeadShape shape, std::uint32_t rows) const override;
  void keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const override;
  std::vector<std::uint32_t> always(HeadShape shape, std::uint32_t rows,
                                    const std::byte* kept) const override;
  std::uint64_t always_rows(std::uint64_t rows) const override;
  std::optional<UnitFormat> unit_format() const override;
  void locate(HeadShape shape, std::uint32_t rows, const std::byte* kept,
              IndexedRows* out) const override;
  std::uint64_t score(const BlockQuery& query, KeyScratch* scratch, float* score,
                      std::size_t stride) const override;

 private:
  Options options_;
  const CpuTable& cpu_;
};

}  // namespace thermocline
