// compress: what a block's bytes are at rest. A codec decides and fits; how coded rows are read is
// the kernels' business (RowFormat).
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "kernels/base/error.h"
#include "tiers/block.h"

namespace thermocline {

class Codec {
 public:
  virtual ~Codec() = default;
  virtual std::string_view name() const = 0;
  virtual RowLayout layout(std::uint32_t key_dim, std::uint32_t value_dim) const = 0;
  // One head's rows, in the order given (empty: as they are), to `out`: rows records of layout.
  virtual void encode(const RawRows& rows, std::uint32_t head, std::span<const std::uint32_t> order,
                      std::byte* out) const = 0;
};

// The raw rows: f16 K beside f16 V, exactly as they were appended.
class RawCodec final : public Codec {
 public:
  std::string_view name() const override { return "raw"; }
  RowLayout layout(std::uint32_t key_dim, std::uint32_t value_dim) const override;
  void encode(const RawRows& rows, std::uint32_t head, std::span<const std::uint32_t> order,
              std::byte* out) const override;
};

}  // namespace thermocline
