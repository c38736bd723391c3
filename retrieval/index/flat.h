// flat: a copy of every key, and so every row's exact score. The oracle of all other indexes, and
// the honest baseline of token selection; it costs as many bytes a step as the keys have.
//
// Kept: [rows][key_dim] f16, in position order.
#pragma once

#include "kernels/cpu/table.h"
#include "retrieval/index/block_index.h"
#include "tiers/parameter.h"

namespace thermocline {

class FlatCode final : public BlockCode {
 public:
  struct Options {};
  static std::span<const Parameter<Options>> parameters() { return {}; }
  FlatCode(const Options&, const CpuTable& cpu) : cpu_(cpu) {}

  std::string_view name() const override { return "flat"; }
  std::uint32_t block() const override { return 1; }
  bool keeps_keys() const override { return true; }
  std::uint64_t bytes(HeadShape shape, std::uint32_t rows) const override;
  void keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const override;
  std::uint64_t score(const BlockQuery& query, KeyScratch* scratch, float* score,
                      std::size_t stride) const override;

 private:
  const CpuTable& cpu_;
};

}  // namespace thermocline
