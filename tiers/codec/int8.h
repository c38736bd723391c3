// int8: a signed byte a channel and one f16 scale a row.
//
// The scale is the least f16 that is no smaller than the row's largest magnitude / 127, so nothing
// is cut off: a finite channel is read back within half of the scale. A row of zeros has scale 0;
// one with an infinity or a NaN is NaN throughout, so that no answer hides it. Coding what was
// decoded (when a timeline is cut inside a segment) moves a channel by 2^-10 of its value at most.
#pragma once

#include "tiers/codec/codec.h"

namespace thermocline {

class Int8Codec final : public PlainCodec {
 public:
  std::string_view name() const override { return "int8"; }
  RowFormat format() const override { return RowFormat::int8; }
  void encode(const f16* row, std::uint32_t dim, std::byte* out) const override;
};

}  // namespace thermocline
