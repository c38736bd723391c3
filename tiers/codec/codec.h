// compress: what keys and values are at rest. A codec writes rows; how coded rows are read is the
// kernels' business (kernels/format/row.h), which a codec names by its format.
//
// One that codes each row by itself is a PlainCodec, and says name(), format() and encode().
//
// One whose rows share something (scales of a channel, an order of channels, a basis) is a Codec
// and a Fitter (fitter.h), which fitter() gives. When a segment is sealed, the fitter first sees
// all raw rows of the side, and leaves what they share: a fit, bytes that stay with the segment
// (tiers/fit.h) and never change. Then write() codes the rows one by one, each by the finished fit,
// and with it any of them is read again, as long as the segment lives. Of layers that are fitted
// together (Fitter::layers) rows are written before there is a fit: they have no bytes.
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

// Of one side, a row of one KV head at a time. Any thread may use it. How near a row is read back,
// and what becomes of an infinity or a NaN, the codec's file says.
class Codec {
 public:
  virtual ~Codec() = default;
  virtual std::string_view name() const = 0;  // as a method's file has it
  virtual RowFormat format() const = 0;
  // Whether coding what read() gives changes nothing.
  virtual bool exact() const { return false; }
  // Null: rows share nothing. Otherwise the format is one of rows that are rebuilt (kFitted).
  virtual const Fitter* fitter() const { return nullptr; }
  // One raw row of `dim` channels to row_bytes(format(), dim) bytes, all of which are written: as
  // row `number` of the head of its segment that `fit`, what fitter() made of the segment, is of.
  virtual void write(const f16* row, std::uint32_t dim, const SideFit& fit, std::uint32_t number,
                     std::byte* out) const = 0;
  // And back to f16: what attention reads, rounded.
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
