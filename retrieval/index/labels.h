// labels: a few channels of every key, those that keys are largest in, in a few bits.
//
// Double Sparsity (arXiv 2408.07092): a quarter of the channels in 4 bits. There the channels are
// found beforehand, on a text to calibrate with; here by the segment's own keys when it is sealed:
// those with the largest sum of |key|.
//
// Kept: the channels, ascending, u16, their number made even; then the planes (bit_planes.h) of
// [rows][channels].
#pragma once

#include "retrieval/index/bit_planes.h"
#include "retrieval/index/block_index.h"
#include "tiers/parameter.h"

namespace thermocline {

struct LabelsOptions {
  double channels = 0.25;  // of the key's, at least one
  std::uint32_t bits = 4;  // a channel
};

class LabelsCode final : public BlockCode {
 public:
  using Options = LabelsOptions;
  static std::span<const Parameter<Options>> parameters();
  LabelsCode(const Options& options, const CpuTable&) : options_(options) {}

  std::string_view name() const override { return "labels"; }
  std::uint32_t block() const override { return 1; }
  std::uint64_t bytes(HeadShape shape, std::uint32_t rows) const override;
  void keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const override;
  const char* flaw(HeadShape shape, std::uint32_t rows, const std::byte* kept) const override;
  std::uint64_t score(const BlockQuery& query, KeyScratch* scratch, float* score,
                      std::size_t stride) const override;

 private:
  std::uint32_t channels(HeadShape shape) const;

  Options options_;
};

}  // namespace thermocline
