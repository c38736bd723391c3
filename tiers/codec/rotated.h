// rotated2, rotated3, rotated4: codes of 2, 3 or 4 bits of a row's channels after a Hadamard
// rotation, with one scale a row. A rotation makes of any channels some that are near normal
// (QuaRot, arXiv 2404.00456; TurboQuant, arXiv 2504.19874), so that one scale suits them all; who
// adds rows up rotates their sum, once. That makes it one for values: keys have means by channel,
// which a rotation spreads (allotted.h takes them off).
//
// The scale is the one, of those from where nothing is cut off down by halves of octaves, and then
// to the least squares, that the errors have the least sum of squares with. So of a finite row: the
// squares of all errors are together no more than if each rotated channel were off by half of a
// step, the largest of them / 1.5, 3.5 or 7.5; and the rounding of the scale and, where it is read
// to f16, of the sums besides. A row with an infinity or a NaN is NaN throughout, so that no answer
// hides it.
#pragma once

#include "tiers/codec/codec.h"

namespace thermocline {

class RotatedCodec final : public PlainCodec {
 public:
  enum class Bits : std::uint8_t { two = 2, three = 3, four = 4 };
  explicit RotatedCodec(Bits bits) : bits_(bits) {}
  std::string_view name() const override;
  RowFormat format() const override;
  void encode(const f16* row, std::uint32_t dim, std::byte* out) const override;

 private:
  Bits bits_;
};

}  // namespace thermocline
