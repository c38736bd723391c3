// Raw rows: f16, exactly as they were appended.
#pragma once

#include "tiers/codec/codec.h"

namespace thermocline {

class RawCodec final : public PlainCodec {
 public:
  std::string_view name() const override { return "raw"; }
  RowFormat format() const override { return RowFormat::f16; }
  bool exact() const override { return true; }
  void encode(const f16* row, std::uint32_t dim, std::byte* out) const override;
};

// What tails and summaries are made of.
RowLayout raw_layout(std::uint32_t key_dim, std::uint32_t value_dim);

}  // namespace thermocline
