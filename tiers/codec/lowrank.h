// lowrank: the rows of all heads of a layer together, as sums of a few basis vectors: ShadowKV's
// keys (arXiv 2410.21465), which it keeps before their rotary embedding in the fastest tier and
// rebuilds where they are read. Keys are rotated back when they are sealed, so the basis is one of
// contents and not of positions. A row has no bytes of its own: its coefficients, f16, are in the
// fit, in host memory, and what lies in the rows' home is the other side alone.
//
// The basis is the eigenvectors of K^T K, rounded to f16, of the segment's rows; or that of the
// segment before, where this one's rows lose no more in it than `most_lost` says. So what is
// generated is sealed onto the basis of the prompt as long as that suits it, and text of any length
// has a basis that fits it. Rows that the selector always reads are kept as they are.
//
// How near a row is read back is the basis's business: over a segment's rows the lost share of the
// squares is 1 - captured(), beside which rounding is nothing (2^-9 of a row's length, of each head
// as of all; with as many vectors as channels a row is read back within that). A row with an
// infinity or a NaN in some head is NaN in all of them, and no basis is made of it. A timeline that
// is cut inside a segment goes on with what was rebuilt, which lies in the basis already: coding it
// again moves it by another rounding.
//
// lowrank_layers: the rows of several layers together, as if those were one with all of their
// heads: xKV (arXiv 2503.18893), whose layers have singular vectors in common. A position has one
// list of coefficients for all of them, and each layer a share of the basis, which is as many times
// larger.
#pragma once

#include "tiers/codec/codec.h"
#include "tiers/parameter.h"

namespace thermocline {

struct LowRankOptions {
  // Vectors at most, as a share of the heads of all layers x head size; in sixteens, at most 1024.
  double rank = 0.156;
  double energy = 1.0;       // as few as capture this share of the squares of the rows, if fewer do
  std::uint32_t layers = 1;  // together, at most

  // As many as capture 99 % of the squares, or less where `energy` says so: in each segment that
  // has a basis of its own, up to half of the channels, of which memory is planned. With more, rows
  // as they are take hardly more bytes, and no time.
  static constexpr double kAutoRank = 0;
};

class LowRankCodec final : public Codec, public Fitter {
 public:
  static std::span<const Parameter<LowRankOptions>> parameters();
  static std::span<const Parameter<LowRankOptions>> parameters_of_layers();
  static constexpr LowRankOptions kOfLayers = {.rank = 0.125, .layers = 4};
  explicit LowRankCodec(const LowRankOptions& options);

  std::string_view name() const override {
    return options_.layers > 1 ? "lowrank_layers" : "lowrank";
  }
  RowFormat format() const override { return RowFormat::lowrank; }
  const Fitter* fitter() const override { return this; }
  void write(const f16*, std::uint32_t, const SideFit&, std::uint32_t, std::byte*) const override {}

  bool spans_heads() const override { return true; }
  std::uint32_t layers() const override { return options_.layers; }
  std::uint64_t bytes(FitShape shape, std::uint64_t rows, std::uint64_t always) const override;
  std::uint64_t scratch_bytes(FitShape shape, std::uint64_t rows) const override;
  Result<Fit> fit(const Fitting& of, const Workers& workers) const override;
  FitFacts facts(FitShape shape, std::uint32_t rows, std::span<const std::byte> common,
                 std::span<const std::byte> own) const override;
  const char* flaw(FitShape shape, std::uint32_t rows, std::span<const std::byte> common,
                   std::span<const std::byte> own) const override;

 private:
  std::uint32_t most_rank(FitShape shape) const;

  LowRankOptions options_;
};

}  // namespace thermocline
