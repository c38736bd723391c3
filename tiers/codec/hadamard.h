// hadamard2, hadamard4: codes of 2 and 4 bits of a row's channels after a Hadamard rotation, in
// groups of 32: RotateKV (arXiv 2501.16383). A rotation spreads a large channel over all of them,
// but what is large in every row is then a constant of each, and those differ. So the rotated
// channels of a head are put in the order of their means over the segment: those of one group lie
// near each other, and its range is what rows differ by. Keys are rotated so before their rotary
// embedding, under which means would be none. The order, 2 bytes a channel and segment, is in the
// fit, in host memory; codes, and a scale and an offset a group as of `kivi2` and `q4_1`, are the
// row's own.
//
// A rotation moves no lengths, so a row is read back within what its groups lose: over 32 channels
// half a step each, steps being a group's range / 3 or / 15, and the rounding of rotated channels,
// scales and offsets to f16. What lies beyond the f16s is held at the largest. A row with an
// infinity or a NaN is NaN in all channels that those are rotated together with, so that no answer
// hides it. Coding what was decoded, when a timeline is cut inside a segment, has another order.
//
// Not of the paper: the rotation of several heads' keys together (a head's row is read alone here);
// an order of a calibration set (it is of the segment's own rows); the search for sinks by massive
// activations (the first rows are raw, wherever the model has its sinks). Its values are rotated by
// their weights; here that is this codec, of values.
#pragma once

#include "tiers/codec/codec.h"
#include "tiers/codec/groups.h"

namespace thermocline {

class HadamardCodec final : public Codec, public Fitter {
 public:
  enum class Bits : std::uint8_t { two = 2, four = 4 };
  explicit HadamardCodec(Bits bits)
      : bits_(bits), groups_(bits == Bits::two ? RowFormat::kivi2 : RowFormat::q4_1) {}

  std::string_view name() const override { return bits_ == Bits::two ? "hadamard2" : "hadamard4"; }
  RowFormat format() const override {
    return bits_ == Bits::two ? RowFormat::hadamard2 : RowFormat::hadamard4;
  }
  const Fitter* fitter() const override { return this; }
  void write(const f16* row, std::uint32_t dim, const SideFit& fit, std::uint32_t number,
             std::byte* out) const override;

  std::uint64_t bytes(FitShape shape, std::uint64_t rows, std::uint64_t always) const override;
  Result<Fit> fit(const Fitting& of, const Workers& workers) const override;
  FitFacts facts(FitShape shape, std::uint32_t rows, std::span<const std::byte> common,
                 std::span<const std::byte> own) const override;
  const char* flaw(FitShape shape, std::uint32_t rows, std::span<const std::byte> common,
                   std::span<const std::byte> own) const override;

 private:
  Bits bits_;
  GroupCodec groups_;
};

}  // namespace thermocline
