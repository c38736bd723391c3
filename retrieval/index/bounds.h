// bounds: the least and the most of each key channel over a block of rows. A block scores the sum
// over channels of max(q * least, q * most): no key of it scores more.
//
// Quest (arXiv 2406.10774); blocks of 16 there.
//
// Kept: for each block [key_dim] least and [key_dim] most, f16, which are the keys' own values.
#pragma once

#include "kernels/cpu/table.h"
#include "retrieval/index/block_index.h"
#include "tiers/parameter.h"

namespace thermocline {

struct BoundsOptions {
  std::uint32_t block = 16;  // rows
};

class BoundsCode final : public BlockCode {
 public:
  using Options = BoundsOptions;
  static std::span<const Parameter<Options>> parameters();
  BoundsCode(const Options& options, const CpuTable& cpu) : options_(options), cpu_(cpu) {}

  std::string_view name() const override { return "bounds"; }
  std::uint32_t block() const override { return options_.block; }
  std::uint64_t bytes(HeadShape shape, std::uint32_t rows) const override;
  void keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const override;
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
