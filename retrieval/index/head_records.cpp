#include "retrieval/index/head_records.h"

#include <cstring>

#include "tiers/numa.h"

namespace thermocline {

Result<std::shared_ptr<HeadRecords>> HeadRecords::create(std::string_view maker,
                                                         std::uint32_t heads, std::uint32_t rows,
                                                         std::uint64_t head_bytes) {
  TL_CHECK(rows >= 1 && rows <= kSegmentRows && head_bytes % 64 == 0);
  std::shared_ptr<HeadRecords> records(new HeadRecords);
  records->maker_ = maker;
  records->rows_ = rows;
  records->head_bytes_ = head_bytes;
  TL_TRY_ASSIGN(records->buffer_, Buffer::create(heads * head_bytes));
  records->bytes_ = records->buffer_.bytes();
  (void)NumaNodes::of_process().spread(records->bytes_);
  std::memset(records->bytes_.data(), 0, records->bytes_.size());
  return records;
}

Result<std::shared_ptr<HeadRecords>> HeadRecords::load(std::string_view maker, std::uint32_t heads,
                                                       std::uint32_t rows, std::uint64_t head_bytes,
                                                       RecordReader* in) {
  TL_TRY_ASSIGN(const auto bytes, in->raw("index", heads * head_bytes));
  TL_TRY_ASSIGN(std::shared_ptr<HeadRecords> records, create(maker, heads, rows, head_bytes));
  std::memcpy(records->bytes_.data(), bytes.data(), bytes.size());
  return records;
}

std::shared_ptr<const SegmentIndex> HeadRecords::copied_to(std::byte* at) const {
  std::shared_ptr<HeadRecords> copy(new HeadRecords);
  copy->maker_ = maker_;
  copy->bytes_ = {at, bytes_.size()};
  copy->head_bytes_ = head_bytes_;
  copy->rows_ = rows_;
  return copy;
}

const HeadRecords* HeadRecords::of(std::string_view maker, const SegmentIndex& index) {
  const auto* records = dynamic_cast<const HeadRecords*>(&index);
  return records && records->maker_ == maker ? records : nullptr;
}

}  // namespace thermocline
