// What an index keeps of a segment when that is a record of bytes for each KV head, all of one
// size: memory that is owned, counted and kept in a file as it is. What the bytes mean is the
// business of the index whose name they carry.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "kernels/base/buffer.h"
#include "tiers/block.h"
#include "tiers/record.h"

namespace thermocline {

// Filled at sealing, by threads for heads of their own; immutable afterwards, when any may read it.
class HeadRecords final : public SegmentIndex {
 public:
  // Zeroed. `maker` outlives it: the name of the index. `head_bytes` is what of_head() returned.
  static Result<std::shared_ptr<HeadRecords>> create(std::string_view maker, std::uint32_t heads,
                                                     std::uint32_t rows, std::uint64_t head_bytes);
  // What save() wrote of records of this shape. corrupt: it is shorter.
  static Result<std::shared_ptr<HeadRecords>> load(std::string_view maker, std::uint32_t heads,
                                                   std::uint32_t rows, std::uint64_t head_bytes,
                                                   RecordReader* in);
  void save(RecordWriter* out) const { out->raw(bytes_); }
  // What a record of so many bytes takes: a head begins on a cache line.
  static std::uint64_t of_head(std::uint64_t bytes) { return round_up(bytes, 64); }

  // `index` as records of this maker; null: it is something else.
  static const HeadRecords* of(std::string_view maker, const SegmentIndex& index);

  std::uint64_t bytes() const override { return bytes_.size(); }
  std::span<const std::byte> whole() const override { return bytes_; }
  std::shared_ptr<const SegmentIndex> copied_to(std::byte* at) const override;
  std::uint32_t rows() const { return rows_; }
  std::byte* head(std::uint32_t h) const { return bytes_.data() + h * head_bytes_; }

 private:
  HeadRecords() = default;

  std::string_view maker_;
  Buffer buffer_;               // none of a copy
  std::span<std::byte> bytes_;  // [heads][head_bytes]
  std::uint64_t head_bytes_ = 0;
  std::uint32_t rows_ = 0;
};

}  // namespace thermocline
