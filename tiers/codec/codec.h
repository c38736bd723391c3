// compress: what keys and values are at rest. A codec writes rows; how coded rows are read is the
// kernels' business (kernels/format/row.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "kernels/base/half.h"
#include "tiers/block.h"
#include "tiers/codec/fitter.h"

namespace thermocline {

// Of one side, a row of one KV head at a time. Any thread may use it. What becomes of an infinity
// or a NaN, the codec's file says.
class Codec {
 public:
  virtual ~Codec() = default;
  virtual std::string_view name() const = 0;
  virtual RowFormat format() const = 0;
  // Null: rows share nothing.
  virtual const Fitter* fitter() const { return nullptr; }
  // One raw row of `dim` channels to row_bytes(format(), dim) bytes, all of which are written: as
  // row `number` of the head of its segment that `fit` is of.
  virtual void write(const f16* row, std::uint32_t dim, const SideFit& fit, std::uint32_t number,
                     std::byte* out) const = 0;
  // And back to f16: what attention reads, rounded. How near that is, the codec's file says.
  void read(const std::byte* row, std::uint32_t dim, const SideFit& fit, std::uint32_t number,
            f16* out) const;
};

// One that codes each row by itself.
class PlainCodec : public Codec {
 public:
  virtual void encode(const f16* row, std::uint32_t dim, std::byte* out) const = 0;
  void write(const f16* row, std::uint32_t dim, const SideFit&, std::uint32_t,
             std::byte* out) const final {
    encode(row, dim, out);
  }
};

// Both sides of a row, which lie side by side: a record.
struct RowCodec {
  std::unique_ptr<const Codec> keys, values;

  const Codec& of(Side side) const { return side == Side::keys ? *keys : *values; }
  RowLayout layout(std::uint32_t key_dim, std::uint32_t value_dim) const;
  // One head's raw rows, in the order given (empty: as they are), to records of layout(), as the
  // rows from `first` on of a segment that has its fits.
  void encode(const RawRows& rows, std::uint32_t head, std::span<const std::uint32_t> order,
              const Segment& segment, std::uint32_t first, std::byte* out) const;
  // Row `number` of a segment's head, back to a raw record of `raw`.
  void decode(const std::byte* key, const std::byte* value, const Segment& segment,
              std::uint32_t head, std::uint32_t number, const RowLayout& raw, std::byte* out) const;
};

}  // namespace thermocline
