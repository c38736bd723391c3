#include "retrieval/index/block_index.h"

#include <algorithm>

#include "retrieval/index/head_records.h"
#include "retrieval/over_segments.h"

namespace thermocline {

std::uint64_t BlockIndex::head_bytes(HeadShape shape, std::uint32_t rows) const {
  return rows == 0 ? 0 : HeadRecords::of_head(code_->bytes(shape, rows));
}

std::uint64_t BlockIndex::index_bytes(HeadShape shape, std::uint64_t rows) const {
  return over_segments(rows, [&](std::uint32_t n) { return head_bytes(shape, n); });
}

Result<Formation> BlockIndex::form(const Sealing& sealing, const Workers& workers) const {
  const RawRows& rows = sealing.rows;
  const HeadShape shape = sealing.shape;
  TL_CHECK(rows.rows >= 1 && rows.rows <= kSegmentRows);
  TL_CHECK(rows.layout.key_bytes == shape.key_dim * sizeof(f16));
  TL_TRY(check_channels(name(), shape));
  TL_TRY_ASSIGN(const auto records,
                HeadRecords::create(name(), rows.heads, rows.rows, head_bytes(shape, rows.rows)));
  workers.parallel(rows.heads, 1, [&](std::size_t first, std::size_t last) {
    for (auto h = static_cast<std::uint32_t>(first); h < last; ++h)
      code_->keep(sealing, h, records->head(h));
  });
  Formation formation;
  formation.index = records;
  if (code_->always_rows(rows.rows) > 0)
    for (std::uint32_t h = 0; h < rows.heads; ++h)
      formation.always.push_back(code_->always(shape, rows.rows, records->head(h)));
  return formation;
}

void BlockIndex::save(const Formation& formation, RecordWriter* out) const {
  static_cast<const HeadRecords&>(*formation.index).save(out);
}

Result<Formation> BlockIndex::load(HeadShape shape, std::uint32_t heads, std::uint32_t rows,
                                   RecordReader* in) const {
  TL_TRY_ASSIGN(const auto records,
                HeadRecords::load(name(), heads, rows, head_bytes(shape, rows), in));
  for (std::uint32_t h = 0; h < heads; ++h)
    if (const char* flaw = code_->flaw(shape, rows, records->head(h)))
      return in->corrupt("index", flaw, ", in head ", h);
  Formation formation;
  formation.index = records;
  return formation;
}

bool BlockIndex::formed(const SegmentIndex& segment) const {
  return HeadRecords::of(name(), segment) != nullptr;
}

std::optional<UnitFormat> BlockIndex::unit_format() const {
  std::optional<UnitFormat> format = code_->unit_format();
  if (format) format->rows = code_->block();
  return format;
}

IndexedRows BlockIndex::indexed(HeadShape shape, const SegmentIndex& index,
                                std::uint32_t head) const {
  const auto& records = static_cast<const HeadRecords&>(index);
  IndexedRows made{.rows = records.rows(), .units = code_->units(records.rows())};
  code_->locate(shape, records.rows(), records.head(head), &made);
  return made;
}

std::uint32_t BlockIndex::units(const SegmentIndex& segment, std::uint32_t) const {
  return code_->units(static_cast<const HeadRecords&>(segment).rows());
}

std::uint32_t BlockIndex::first_row(const SegmentIndex& segment, std::uint32_t,
                                    std::uint32_t unit) const {
  return std::min(unit * code_->block(), static_cast<const HeadRecords&>(segment).rows());
}

std::uint64_t BlockIndex::score(const KeyQuery& query, KeyScratch* scratch, float* score,
                                std::size_t stride) const {
  std::uint64_t rows = 0;
  for (const SegmentIndex* segment : query.segments)
    rows += static_cast<const HeadRecords&>(*segment).rows();
  std::uint64_t bytes = 0;
  for (const SegmentIndex* segment : query.segments) {
    const auto& records = static_cast<const HeadRecords&>(*segment);
    const std::uint64_t wanted =
        (std::uint64_t{query.wanted_rows} * records.rows() + rows - 1) / rows;
    bytes += code_->score({query.shape, query.query, records.head(query.head), records.rows(),
                           static_cast<std::uint32_t>(wanted)},
                          scratch, score, stride);
    score += code_->units(records.rows());
  }
  return bytes;
}

}  // namespace thermocline
