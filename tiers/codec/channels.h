// channels2, channels4: codes of 2 and 4 bits between the least and the greatest value of a channel
// in a group of 32 rows, as rows are stored: KIVI's keys (arXiv 2402.02750). Two f16 a channel and
// group are 1 bit a channel more, in host memory wherever the rows are.
//
// The scale is the least f16 that is no smaller than a channel's range / (levels - 1), so nothing
// is cut off: a finite channel is read back within half of its scale, and a float's rounding. A
// channel that has an infinity or a NaN in a group is NaN in all of its rows, so that no answer
// hides it. Coding what was decoded (when a timeline is cut inside a segment) has groups of other
// rows: each time a channel moves by half of a group's scale at most.
#pragma once

#include "tiers/codec/codec.h"

namespace thermocline {

class ChannelsCodec final : public Codec, public Fitter {
 public:
  enum class Bits : std::uint8_t { two = 2, four = 4 };
  explicit ChannelsCodec(Bits bits) : bits_(bits) {}

  std::string_view name() const override { return bits_ == Bits::two ? "channels2" : "channels4"; }
  RowFormat format() const override {
    return bits_ == Bits::two ? RowFormat::channels2 : RowFormat::channels4;
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
  void fit_group(const Fitting& of, std::uint32_t head, std::uint32_t group, f16* scale) const;

  Bits bits_;
};

}  // namespace thermocline
