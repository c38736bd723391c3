// allotted2, allotted3, allotted4: codes of 2, 3 or 4 bits a channel on average, of which each
// channel of a head gets as many as it is worth: 0 to 8. Keys are so before their rotary embedding.
// Ours; its parts are known: means by channel taken off first (of keys before their embedding they
// are most of the squares), levels where the least squares of a normal distribution want them (Max
// 1960, Lloyd 1982; TurboQuant, arXiv 2504.19874), bits by the logarithm of what a channel adds to
// the error (reverse water-filling; of KV caches KVTC, arXiv 2511.01815, after a transform that
// this has none of). What a channel of keys adds to the error of scores is its variance times the
// mean square of the prefill's last queries there, of both channels that the embedding turns
// together. A rotation would make all channels alike, and with that be the worst there is.
//
// A segment's channels have a mean and a spread, their deviation from it; a row has a scale, which
// all of its spreads are multiplied by. It is the one, of those from where nothing is cut off down
// by halves of octaves, and then to the least squares, that the row's errors have the least sum of
// squares with, each channel's by its spread. So of a finite row:
//
//   the squares of the errors of all channels that have bits are together no more than if each were
//   off by half of the widest gap between the levels of its width, times its spread, times the
//   least scale under which the highest level is beyond all that the row has; and the roundings to
//   f16 besides. A channel without bits is off by its distance from the mean.
//
// Where one channel of a row lies far out, the row's others are told less well apart. A row with an
// infinity or a NaN is NaN throughout, so that no answer hides it, and counts in no mean. Coding
// what was decoded, when a timeline is cut inside a segment, has other means and spreads.
//
// What is generated, cut or copied has no queries to go by: then those of the segment before count
// on, and without one, as for values, all channels are asked alike. The fit is 6 bytes a channel
// and segment, and 16 a head, in host memory, beside the queries' 4 a channel.
#pragma once

#include "tiers/codec/codec.h"

namespace thermocline {

class AllottedCodec final : public Codec, public Fitter {
 public:
  enum class Bits : std::uint8_t { two = 2, three = 3, four = 4 };  // a channel, on average
  explicit AllottedCodec(Bits bits) : bits_(bits) {}

  std::string_view name() const override;
  RowFormat format() const override;
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
  // Of the planes of a row's codes.
  std::uint32_t codes_bytes(std::uint32_t dim) const {
    return row_bytes(format(), dim) - sizeof(f16);
  }
  void fit_head(const Fitting& of, std::uint32_t head, const float* queries, std::byte* own) const;

  Bits bits_;
};

}  // namespace thermocline
