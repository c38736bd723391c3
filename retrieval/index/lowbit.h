// lowbit: every key in a few bits a channel, and every row scored by that.
//
// FIER (arXiv 2508.08256) does it with 1 bit and groups of 32 rows that share a channel's scale, as
// here (bit_planes.h). Twilight (arXiv 2502.02770) does it with 4 bits, a scale a row; those of a
// channel are nearer to the keys for the same bits.
//
// Kept: the planes of [rows][key_dim].
#pragma once

#include "retrieval/index/bit_planes.h"
#include "retrieval/index/block_index.h"
#include "tiers/parameter.h"

namespace thermocline {

struct LowbitOptions {
  std::uint32_t bits = 4;  // a channel
};

class LowbitCode final : public BlockCode {
 public:
  using Options = LowbitOptions;
  static std::span<const Parameter<Options>> parameters();
  LowbitCode(const Options& options, const CpuTable& cpu) : options_(options), cpu_(cpu) {}

  std::string_view name() const override { return "lowbit"; }
  std::uint32_t block() const override { return 1; }
  std::uint64_t bytes(HeadShape shape, std::uint32_t rows) const override;
  void keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const override;
  std::uint64_t score(const BlockQuery& query, KeyScratch* scratch, float* score,
                      std::size_t stride) const override;

 private:
  Options options_;
  const CpuTable& cpu_;
};

}  // namespace thermocline
