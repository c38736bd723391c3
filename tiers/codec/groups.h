// q8_0, q4_0, q4_1, q5_0, q5_1, iq4_nl: groups of 32 channels by the rules of llama.cpp, so that a
// row has the bits that its cache has for the same floats under the same name (of its portable
// code: its vector code for q8_0 takes 127 / largest where this takes 1 / (largest / 127)). kivi2:
// KIVI's values at two bits (arXiv 2402.02750), also a token's channels in groups of 32; at four
// bits they are q4_1.
//
// How near a finite channel is read back, in steps, where a step is of the group's largest
// magnitude `most` or of its range, largest less least, both ends included:
//
//   q8_0    most / 127       half a step
//   q4_0    most / 8         half a step; a whole one at the end whose sign most has not
//   q5_0    most / 16        the same
//   q4_1    range / 15       half a step
//   q5_1    range / 31       half a step
//   iq4_nl  most / 127       thirty: levels lie 10 to 24 apart, and the scale is fitted to all
//   kivi2   range / 3        half a step
//
// and, since scale and offset are f16, 2^-11 of `most` or of the range besides, or, where the scale
// is subnormal, 2^-25 a level. A group with an infinity or a NaN is NaN throughout, so that no
// answer hides it.
#pragma once

#include "tiers/codec/codec.h"

namespace thermocline {

class GroupCodec final : public PlainCodec {
 public:
  // One of those.
  explicit GroupCodec(RowFormat format);
  std::string_view name() const override;
  RowFormat format() const override;
  void encode(const f16* row, std::uint32_t dim, std::byte* out) const override;

  struct Rule;

 private:
  const Rule* rule_;
};

}  // namespace thermocline
