// moments: the mean and the variance of each key channel over a block of rows. A block scores
// q . mean + alpha * sqrt(sum of q^2 * variance): what its better keys score, where channels vary
// by themselves.
//
// The bytes of bounds, and a tighter look at the same blocks: bounds is what all channels reach
// together at their worst, which no key does.
//
// Neighbouring blocks may be groups, of whose rows the same is kept. Then a segment's groups are
// scored first, as blocks are, and only the blocks of the best groups are looked at, as many as
// hold `candidates` times the rows that are wanted. The best are those that come nearest to what
// some query head scores most there: one head may score everything higher than another does.
//
// Kept: for each group, then for each block, [key_dim] means and [key_dim] variances, f16; a
// variance too large for that is the largest there is.
#pragma once

#include "kernels/cpu/table.h"
#include "retrieval/index/block_index.h"
#include "tiers/parameter.h"

namespace thermocline {

struct MomentsOptions {
  std::uint32_t block = 16;        // rows
  double alpha = 2;                // deviations above the mean
  std::uint32_t group_blocks = 0;  // blocks a group; 0: no groups, every block is looked at
  double candidates = 8;           // rows whose blocks are looked at, as a multiple of those wanted
};

class MomentsCode final : public BlockCode {
 public:
  using Options = MomentsOptions;
  static std::span<const Parameter<Options>> parameters();
  MomentsCode(const Options& options, const CpuTable& cpu) : options_(options), cpu_(cpu) {}

  std::string_view name() const override { return "moments"; }
  std::uint32_t block() const override { return options_.block; }
  bool scores_all() const override { return group_rows() == 0; }
  std::uint64_t bytes(HeadShape shape, std::uint32_t rows) const override;
  void keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const override;
  std::optional<UnitFormat> unit_format() const override;
  void locate(HeadShape shape, std::uint32_t rows, const std::byte* kept,
              IndexedRows* out) const override;
  std::uint64_t score(const BlockQuery& query, KeyScratch* scratch, float* score,
                      std::size_t stride) const override;

 private:
  std::uint32_t group_rows() const { return options_.group_blocks * options_.block; }
  std::uint32_t groups(std::uint32_t rows) const {
    return group_rows() == 0 ? 0 : (rows + group_rows() - 1) / group_rows();
  }
  // How many groups of a segment of which so many rows are wanted; it may have fewer.
  std::size_t looked_at(std::uint32_t wanted_rows) const;
  // Of `count` groups or blocks that follow each other.
  void score_moments(const BlockQuery& query, const std::byte* moments, std::size_t count,
                     const float* squared, float* variance, float* score, std::size_t stride) const;

  Options options_;
  const CpuTable& cpu_;
};

}  // namespace thermocline
