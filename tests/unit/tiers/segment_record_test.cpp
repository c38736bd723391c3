// Records of segments that do not agree with themselves: what only a file that somebody made would
// say, its checksums right.
#include "tiers/segment_record.h"

#include <gtest/gtest.h>

#include <functional>

#include "kernels/base/buffer.h"

namespace thermocline {
namespace {

constexpr std::uint32_t kHeads = 2, kRows = 32;

// Of a segment in an order of its own, changed.
struct Parts {
  Segment segment;
  Extent rows;
  std::vector<std::uint64_t> checksums;
};

std::string refusal(const std::function<void(Parts*)>& change) {
  Parts parts;
  parts.segment.layout = {RowFormat::f16, RowFormat::f16, 128, 128};
  parts.segment.heads = kHeads;
  parts.segment.rows = kRows;
  for (std::uint32_t i = 0; i < kHeads * kRows; ++i)
    parts.segment.offset.push_back(static_cast<std::uint16_t>(kRows - 1 - i % kRows));
  parts.rows = {kPageBytes, kHeads * 2 * kPageBytes};
  parts.checksums.resize(kHeads * 2);
  change(&parts);
  RecordWriter out;
  SegmentRecord::write(
      parts.segment, parts.rows, 1, parts.checksums, [](RecordWriter*) {}, &out);
  const auto record = SegmentRecord::decode(out.bytes(), "record");
  EXPECT_TRUE(record || record.error().code == ErrorCode::corrupt);
  return record ? "taken" : record.error().message;
}

TEST(SegmentRecord, ThatAgreesWithItselfIsTaken) {
  EXPECT_EQ(refusal([](Parts*) {}), "taken");
  EXPECT_EQ(refusal([](Parts* parts) { parts->segment.offset.clear(); }), "taken");
}

TEST(SegmentRecord, ThatDoesNotSaysWhichField) {
  EXPECT_EQ(refusal([](Parts* parts) { parts->segment.layout.key_format = RowFormat{99}; }),
            "record: field format is 99, which this build does not know");
  EXPECT_EQ(refusal([](Parts* parts) { parts->segment.heads = 0; }),
            "record: field layout has 0 heads with keys of 128 and values of 128 bytes");
  EXPECT_EQ(refusal([](Parts* parts) { parts->segment.layout.key_bytes = 1 << 20; }),
            "record: field layout has 2 heads with keys of 1048576 and values of 128 bytes");
  EXPECT_EQ(refusal([](Parts* parts) { parts->segment.rows = kSegmentRows + 1; }),
            "record: field rows is 8193 from position 0");
  EXPECT_EQ(refusal([](Parts* parts) { parts->segment.first_position = ~0u - 3; }),
            "record: field rows is 32 from position 4294967292");
  EXPECT_EQ(refusal([](Parts* parts) { parts->rows.bytes -= kPageBytes; }),
            "record: field rows_bytes is 12288 with 4 checksums, for 32 rows of 2 heads");
  EXPECT_EQ(refusal([](Parts* parts) { parts->checksums.pop_back(); }),
            "record: field rows_bytes is 16384 with 3 checksums, for 32 rows of 2 heads");
  EXPECT_EQ(refusal([](Parts* parts) { parts->segment.offset.pop_back(); }),
            "record: field offsets has 63 entries for 64 rows");
  EXPECT_EQ(refusal([](Parts* parts) { parts->segment.offset[40] = parts->segment.offset[41]; }),
            "record: field offsets has 22 of 32 rows twice");
  EXPECT_EQ(refusal([](Parts* parts) { parts->segment.offset[3] = kRows; }),
            "record: field offsets has 32 of 32 rows");
}

}  // namespace
}  // namespace thermocline
