#include "tiers/segment_record.h"

#include <bitset>

#include "kernels/base/buffer.h"
#include "kernels/format/row.h"

namespace thermocline {
namespace {

// Before the lists.
struct Fields {
  std::uint32_t layer = 0, heads = 0, rows = 0, first_position = 0;
  std::uint32_t key_format = 0, value_format = 0, key_bytes = 0, value_bytes = 0;
  std::uint64_t rows_offset = 0, rows_bytes = 0, epoch = 0;
};

std::uint64_t head_bytes_of(const Segment& segment) {
  return round_up(std::uint64_t{segment.layout.bytes()} * segment.rows, kPageBytes);
}

Result<RowFormat> format_of(std::uint32_t number, const RecordReader& in) {
  if (const auto known = row_format_of(number)) return *known;
  return in.corrupt("format", "is ", number, ", which this build does not know");
}

// Each head has each row once: what reads rows back counts on all of them.
Status check_offsets(const Segment& segment, const RecordReader& in) {
  if (segment.offset.empty()) return {};
  const std::size_t all = std::size_t{segment.heads} * segment.rows;
  if (segment.offset.size() != all)
    return in.corrupt("offsets", "has ", segment.offset.size(), " entries for ", all, " rows");
  std::bitset<kSegmentRows> seen;
  for (std::size_t i = 0; i < all; ++i) {
    if (i % segment.rows == 0) seen.reset();
    const std::uint16_t offset = segment.offset[i];
    if (offset >= segment.rows || seen[offset])
      return in.corrupt("offsets", "has ", offset, " of ", segment.rows, " rows",
                        offset < segment.rows ? " twice" : "");
    seen.set(offset);
  }
  return {};
}

Status check(const SegmentRecord& record, const RecordReader& in) {
  const Segment& segment = record.segment;
  constexpr std::uint32_t kMostBytes = 1u << 16, kMostHeads = 1u << 16;  // of a side; of a layer
  if (segment.layout.key_bytes > kMostBytes || segment.layout.value_bytes > kMostBytes ||
      segment.layout.bytes() == 0 || segment.heads == 0 || segment.heads > kMostHeads)
    return in.corrupt("layout", "has ", segment.heads, " heads with keys of ",
                      segment.layout.key_bytes, " and values of ", segment.layout.value_bytes,
                      " bytes");
  if (segment.rows == 0 || segment.rows > kSegmentRows ||
      segment.first_position > ~std::uint32_t{0} - segment.rows)
    return in.corrupt("rows", "is ", segment.rows, " from position ", segment.first_position);
  if (record.rows.bytes != record.head_bytes() * segment.heads ||
      record.checksums.size() != record.rows.bytes / kPageBytes)
    return in.corrupt("rows_bytes", "is ", record.rows.bytes, " with ", record.checksums.size(),
                      " checksums, for ", segment.rows, " rows of ", segment.heads, " heads");
  return check_offsets(segment, in);
}

}  // namespace

std::uint64_t SegmentRecord::head_bytes() const { return head_bytes_of(segment); }

std::uint64_t SegmentRecord::identity(std::uint64_t epoch, std::uint64_t rows_offset,
                                      std::uint64_t page) {
  return epoch * 0x9e3779b97f4a7c15ull + rows_offset / kPageBytes + page;
}

void SegmentRecord::write(const Segment& segment, const Extent& rows, std::uint64_t epoch,
                          std::span<const std::uint64_t> checksums, const WriteRecord& more,
                          RecordWriter* out) {
  Fields fields{index(segment.layer), segment.heads, segment.rows, segment.first_position};
  fields.key_format = static_cast<std::uint32_t>(segment.layout.key_format);
  fields.value_format = static_cast<std::uint32_t>(segment.layout.value_format);
  fields.key_bytes = segment.layout.key_bytes;
  fields.value_bytes = segment.layout.value_bytes;
  fields.rows_offset = rows.offset;
  fields.rows_bytes = rows.bytes;
  fields.epoch = epoch;
  out->value(fields);
  out->list(checksums);
  out->list(std::span<const std::uint16_t>(segment.offset));
  out->value(std::uint64_t{size_of(more)});
  more(out);
}

std::uint64_t SegmentRecord::bytes_for(const Segment& segment, bool ordered,
                                       std::uint64_t more_bytes) {
  const std::uint64_t pages = segment.heads * head_bytes_of(segment) / kPageBytes;
  const std::uint64_t offsets =
      ordered ? std::uint64_t{segment.heads} * segment.rows * sizeof(segment.offset[0]) : 0;
  return round_up(sizeof(Fields) + 3 * sizeof(std::uint64_t) + pages * sizeof(std::uint64_t) +
                      offsets + more_bytes,
                  kPageBytes);
}

Result<SegmentRecord> SegmentRecord::decode(std::span<const std::byte> bytes,
                                            const std::string& name) {
  RecordReader in(bytes, name);
  Fields fields;
  SegmentRecord record;
  TL_TRY(in.value("segment", &fields));
  TL_TRY(in.list("checksums", &record.checksums));
  TL_TRY(in.list("offsets", &record.segment.offset));
  TL_TRY(in.list("more", &record.more));
  Segment& segment = record.segment;
  TL_TRY_ASSIGN(segment.layout.key_format, format_of(fields.key_format, in));
  TL_TRY_ASSIGN(segment.layout.value_format, format_of(fields.value_format, in));
  segment.layout.key_bytes = fields.key_bytes;
  segment.layout.value_bytes = fields.value_bytes;
  segment.layer = LayerId{fields.layer};
  segment.heads = fields.heads;
  segment.rows = fields.rows;
  segment.first_position = fields.first_position;
  record.rows = {fields.rows_offset, fields.rows_bytes};
  record.epoch = fields.epoch;
  TL_TRY(check(record, in));
  return record;
}

}  // namespace thermocline
