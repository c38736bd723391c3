// pruned5, pruned6: five or six of eight channels of a row, as they are, and zeros for the others:
// ThinK (arXiv 2407.21018), for keys as they are attended, after their rotary embedding. Kept are,
// for each KV head over all rows of a segment, the channels in which the squares of its queries
// times those of its keys are the largest: what a channel adds to scores, if it were by itself. The
// queries are the last of the prefill's span that the segment is of. What is generated, cut or
// copied has none to go by: then those of the segment before count on, and without one keys alone
// do. Values have no queries: kept are the largest.
//
// A kept channel is read back to the bit, any other as zero. A row with an infinity or a NaN is NaN
// in all channels that are kept, so that no answer hides it. Coding what was decoded, when a
// timeline is cut inside a segment, keeps the same channels: the others are zero then.
//
// Not of the paper: shares other than these two (its own are 30 to 60 % of channels pruned, here 37
// and 25); one choice for the prompt, whatever is generated (each segment has its own).
#pragma once

#include "tiers/codec/codec.h"

namespace thermocline {

class PrunedCodec final : public Codec, public Fitter {
 public:
  enum class Eighths : std::uint8_t { five = 5, six = 6 };  // of the channels are kept
  explicit PrunedCodec(Eighths kept) : kept_(kept) {}

  std::string_view name() const override { return kept_ == Eighths::five ? "pruned5" : "pruned6"; }
  RowFormat format() const override {
    return kept_ == Eighths::five ? RowFormat::pruned5 : RowFormat::pruned6;
  }
  const Fitter* fitter() const override { return this; }
  void write(const f16* row, std::uint32_t dim, const SideFit& fit, std::uint32_t number,
             std::byte* out) const override;

  bool asks_for_queries() const override { return true; }
  std::uint64_t bytes(FitShape shape, std::uint64_t rows, std::uint64_t always) const override;
  Result<Fit> fit(const Fitting& of, const Workers& workers) const override;
  FitFacts facts(FitShape shape, std::uint32_t rows, std::span<const std::byte> common,
                 std::span<const std::byte> own) const override;
  const char* flaw(FitShape shape, std::uint32_t rows, std::span<const std::byte> common,
                   std::span<const std::byte> own) const override;

 private:
  std::uint32_t kept(std::uint32_t dim) const { return row_bytes(format(), dim) / sizeof(f16); }
  std::uint64_t own_bytes(FitShape shape) const;

  Eighths kept_;
};

}  // namespace thermocline
