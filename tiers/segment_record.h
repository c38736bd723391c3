// What a kept file says of one segment, beside its rows (docs/session_format.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "tiers/block.h"
#include "tiers/record.h"
#include "tiers/store/store.h"

namespace thermocline {

struct SegmentRecord {
  Segment segment;  // without an id
  Extent rows;      // [heads], each of whole pages
  std::uint64_t epoch = 0;
  std::vector<std::uint64_t> checksums;  // of the rows' pages
  std::vector<std::byte> more;           // the caller's

  std::uint64_t head_bytes() const;
  // What page_checksum() is seeded with for page `page` of the rows.
  static std::uint64_t identity(std::uint64_t epoch, std::uint64_t rows_offset, std::uint64_t page);

  // One whose parts lie elsewhere.
  static void write(const Segment& segment, const Extent& rows, std::uint64_t epoch,
                    std::span<const std::uint64_t> checksums, const WriteRecord& more,
                    RecordWriter* out);
  // At most what a record takes of a segment in an order of its own, or in none; `more_bytes`: the
  // caller's. Whole pages.
  static std::uint64_t bytes_for(const Segment& segment, bool ordered, std::uint64_t more_bytes);
  // Of untrusted bytes, padding at the end allowed; `name` begins messages. What it says agrees
  // with itself; whether it fits a cache is for who knows the cache.
  static Result<SegmentRecord> decode(std::span<const std::byte> bytes, const std::string& name);
};

}  // namespace thermocline
