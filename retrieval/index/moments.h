// moments: the mean and the variance of each key channel over a block of rows. A block scores
// q . mean + alpha * sqrt(sum of q^2 * variance): what its better keys score, where channels vary
// by themselves.
//
// The bytes of bounds, and a tighter look at the same blocks: bounds is what all channels reach
// together at their worst, which no key does.
//
// Kept: for each block [key_dim] means and [key_dim] variances, f16; a variance too large for that
// is the largest there is.
#pragma once

#include "kernels/cpu/table.h"
#include "retrieval/index/block_index.h"
#include "tiers/parameter.h"

namespace thermocline {

struct MomentsOptions {
  std::uint32_t block = 16;  // rows
  double alpha = 2;          // deviations above the mean
};

class MomentsCode final : public BlockCode {
 public:
  using Options = MomentsOptions;
  static std::span<const Parameter<Options>> parameters();
  MomentsCode(const Options& options, const CpuTable& cpu) : options_(options), cpu_(cpu) {}

  std::string_view name() const override { return "moments"; }
  std::uint32_t block() const override { return options_.block; }
  std::uint64_t bytes(HeadShape shape, std::uint32_t rows) const override;
  void keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const override;
  void score(const BlockQuery& query, KeyScratch* scratch, float* score,
             std::size_t stride) const override;

 private:
  Options options_;
  const CpuTable& cpu_;
};

}  // namespace thermocline
