// bf16: 16 bits a channel, of which a key's or value's f16 keeps its exponent and eight bits.
//
// A channel is read back within 2^-8 of its value, infinities and NaNs as they are. It takes what
// f16 takes and keeps less: there to be compared with.
#pragma once

#include "tiers/codec/codec.h"

namespace thermocline {

class Bf16Codec final : public PlainCodec {
 public:
  std::string_view name() const override { return "bf16"; }
  RowFormat format() const override { return RowFormat::bf16; }
  void encode(const f16* row, std::uint32_t dim, std::byte* out) const override;
};

}  // namespace thermocline
