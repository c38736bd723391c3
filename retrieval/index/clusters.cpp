#include "retrieval/index/clusters.h"

#include <algorithm>

#include "kernels/format/row.h"
#include "retrieval/index/key_clusters.h"
#include "retrieval/over_segments.h"
#include "tiers/codec/int8.h"

namespace thermocline {
namespace {

using MeanCodec = Int8Codec;  // a mean's rounding is nothing beside its rows' spread
constexpr RowFormat kMeanFormat = RowFormat::int8;

std::uint64_t starts_bytes(std::uint32_t clusters) {
  return round_up((std::uint64_t{clusters} + 1) * sizeof(std::uint16_t), 64);
}

void write_mean(const std::vector<double>& mean, std::byte* out) {
  std::vector<f16> half(mean.size());
  for (std::size_t d = 0; d < mean.size(); ++d) half[d] = to_f16(static_cast<float>(mean[d]));
  MeanCodec().encode(half.data(), static_cast<std::uint32_t>(mean.size()), out);
}

}  // namespace

std::span<const Parameter<ClustersOptions>> ClustersIndex::parameters() {
  static constexpr Parameter<ClustersOptions> kParameters[] = {
      {"cluster", &ClustersOptions::cluster, 4, 256}};
  return kParameters;
}

std::uint32_t ClustersIndex::clusters(std::uint32_t rows) const {
  return (rows + options_.cluster - 1) / options_.cluster;
}

std::uint64_t ClustersIndex::head_bytes(HeadShape shape, std::uint32_t rows) const {
  if (rows == 0) return 0;
  const std::uint32_t count = clusters(rows);
  return HeadRecords::of_head(starts_bytes(count) +
                              std::uint64_t{count} * row_bytes(kMeanFormat, shape.key_dim));
}

std::uint64_t ClustersIndex::index_bytes(HeadShape shape, std::uint64_t rows) const {
  return over_segments(rows, [&](std::uint32_t n) { return head_bytes(shape, n); });
}

std::uint64_t ClustersIndex::summary_bytes(HeadShape shape, std::uint64_t rows) const {
  return over_segments(rows, [&](std::uint32_t n) { return std::uint64_t{clusters(n)}; }) *
         summary_layout(shape).bytes();
}

std::span<std::uint16_t> ClustersIndex::starts(const HeadRecords& records,
                                               std::uint32_t head) const {
  return {reinterpret_cast<std::uint16_t*>(records.head(head)), clusters(records.rows()) + 1};
}

std::byte* ClustersIndex::means(const HeadRecords& records, std::uint32_t head) const {
  return records.head(head) + starts_bytes(clusters(records.rows()));
}

Result<Formation> ClustersIndex::form(const Sealing& sealing, const Workers& workers) const {
  const RawRows& rows = sealing.rows;
  const HeadShape shape = sealing.shape;
  TL_CHECK(rows.rows >= 1 && rows.rows <= kSegmentRows);
  TL_TRY(check_channels(name(), shape));
  TL_TRY_ASSIGN(const auto records,
                HeadRecords::create(name(), rows.heads, rows.rows, head_bytes(shape, rows.rows)));
  const std::uint32_t count = clusters(rows.rows);
  const std::size_t mean_bytes = row_bytes(kMeanFormat, shape.key_dim);
  Formation formation;
  formation.order.reserve(std::size_t{rows.heads} * rows.rows);
  formation.summaries = count;
  formation.summary_layout = summary_layout(shape);
  const std::size_t record = formation.summary_layout.bytes();
  formation.summary_rows.resize(rows.heads * count * record);
  for (std::uint32_t head = 0; head < rows.heads; ++head) {
    const KeyClusters made = cluster_keys(sealing, head, count, options_.kmeans, cpu_, workers);
    formation.order.insert(formation.order.end(), made.order.begin(), made.order.end());
    std::copy(made.starts.begin(), made.starts.end(), starts(*records, head).begin());
    std::byte* keys = means(*records, head);
    std::byte* values = formation.summary_rows.data() + head * count * record;
    workers.parallel(count, 32, [&](std::size_t first, std::size_t last) {
      std::vector<double> key(shape.key_dim), value(shape.value_dim);
      for (std::size_t c = first; c < last; ++c) {
        const std::span<const std::uint32_t> of(made.order.data() + made.starts[c],
                                                made.order.data() + made.starts[c + 1]);
        average_rows(rows, head, of, &RawRows::key, key);
        write_mean(key, keys + c * mean_bytes);
        average_rows(rows, head, of, &RawRows::value, value);
        write_mean(value, values + c * record);
      }
    });
  }
  formation.index = records;
  return formation;
}

void ClustersIndex::save(const Formation& formation, RecordWriter* out) const {
  out->raw(formation.summary_rows);
  static_cast<const HeadRecords&>(*formation.index).save(out);
}

Result<Formation> ClustersIndex::load(HeadShape shape, std::uint32_t heads, std::uint32_t rows,
                                      RecordReader* in) const {
  Formation formation;
  formation.summaries = clusters(rows);
  formation.summary_layout = summary_layout(shape);
  TL_TRY_ASSIGN(const auto summary_rows,
                in->raw("summaries", std::uint64_t{formation.summaries} *
                                         formation.summary_layout.bytes() * heads));
  formation.summary_rows.assign(summary_rows.begin(), summary_rows.end());
  TL_TRY_ASSIGN(const auto records,
                HeadRecords::load(name(), heads, rows, head_bytes(shape, rows), in));
  for (std::uint32_t h = 0; h < heads; ++h) {
    const std::span<const std::uint16_t> of = starts(*records, h);
    if (of.front() != 0 || of.back() != rows || !std::is_sorted(of.begin(), of.end()))
      return in->corrupt("index", "has clusters of head ", h, " that do not cover its rows");
  }
  formation.index = records;
  return formation;
}

// Values alone: a summary's key is in the index, and its score comes with the read.
RowLayout ClustersIndex::summary_layout(HeadShape shape) const {
  return {kMeanFormat, kMeanFormat, 0, row_bytes(kMeanFormat, shape.value_dim)};
}

IndexedRows ClustersIndex::indexed(HeadShape shape, const SegmentIndex& index,
                                   std::uint32_t head) const {
  const auto& records = static_cast<const HeadRecords&>(index);
  return {.rows = records.rows(),
          .units = clusters(records.rows()),
          .unit_keys = means(records, head),
          .unit_key_bytes = row_bytes(kMeanFormat, shape.key_dim),
          .starts = starts(records, head).data()};
}

bool ClustersIndex::formed(const SegmentIndex& segment) const {
  return HeadRecords::of(name(), segment) != nullptr;
}

std::uint32_t ClustersIndex::units(const SegmentIndex& segment, std::uint32_t) const {
  return clusters(static_cast<const HeadRecords&>(segment).rows());
}

std::uint32_t ClustersIndex::first_row(const SegmentIndex& segment, std::uint32_t head,
                                       std::uint32_t unit) const {
  return starts(static_cast<const HeadRecords&>(segment), head)[unit];
}

std::uint64_t ClustersIndex::score(const KeyQuery& query, KeyScratch*, float* score,
                                   std::size_t stride) const {
  const HeadShape shape = query.shape;
  const std::size_t mean_bytes = row_bytes(kMeanFormat, shape.key_dim);
  std::uint64_t bytes = 0;
  for (const SegmentIndex* segment : query.segments) {
    const auto& records = static_cast<const HeadRecords&>(*segment);
    const std::uint32_t count = clusters(records.rows());
    cpu_.sketch.dot_rows(kMeanFormat, means(records, query.head), mean_bytes, count, shape.key_dim,
                         query.query, static_cast<int>(shape.heads), score, stride);
    score += count;
    bytes += count * mean_bytes;
  }
  return bytes;
}

}  // namespace thermocline
