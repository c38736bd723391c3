// nuq4, nuq4_rows: codes of 4 bits for 16 levels that lie where a segment's values are, and about 1
// % of the values, the outliers, beside them as they were: KVQuant (arXiv 2401.18079). `nuq4` has a
// range for each channel over all rows of the segment, before the rotary embedding of keys, which
// are rotated where they are read; `nuq4_rows`, for values, one for each row of a head. Ranges and
// outliers are in the fit, in host memory wherever the rows are.
//
// Of n values of a channel or row, outlier * n, rounded up, are left out of its range at most:
// those at its ends without which it is shortest. The others are moved and scaled to -1 to 1, and
// levels are the means of k-means over those of all heads, in steps of 1/512, each with the weight
// of its squared scale, so that they serve the sum of squared errors.
//
// A value that is no outlier is read back as its nearest level: within its scale, half of the range
// and an f16's rounding more, times the distance to that. An outlier is rounded to f16. Both are so
// before the rotation, which moves no lengths; what lies beyond the f16s when it is rotated back is
// held at the largest. A channel (in nuq4_rows a row) that has an infinity or a NaN is NaN in all
// its rows, of a key with the channel that it is rotated with, so that no answer hides it. Coding
// what was decoded, when a timeline is cut inside a segment, has ranges and levels of other rows.
//
// Not of the paper: ranges, levels and thresholds of a calibration set, with the squares of the
// loss's gradients as weights (these are of the segment's own rows); 2 and 3 bits; thresholds of a
// row over all heads together; the correction of a level's mean and deviation (Q-Norm).
#pragma once

#include "tiers/codec/codec.h"
#include "tiers/parameter.h"

namespace thermocline {

struct NuqOptions {
  double outliers = 0.01;  // of the values of a channel or a row
};

class NuqCodec final : public Codec, public Fitter {
 public:
  enum class By : std::uint8_t { channel = 0, row = 1 };  // what has a range; as in a fit
  static std::span<const Parameter<NuqOptions>> parameters();
  NuqCodec(By by, const NuqOptions& options) : by_(by), options_(options) {}

  std::string_view name() const override { return by_ == By::channel ? "nuq4" : "nuq4_rows"; }
  RowFormat format() const override { return RowFormat::nuq4; }
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
  std::uint64_t most_outliers(FitShape shape, std::uint64_t rows) const;

  By by_;
  NuqOptions options_;
};

}  // namespace thermocline
