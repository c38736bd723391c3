// clusters: rows lie by content, about 16 alike together, and score as their mean key does. A
// cluster's mean value is a summary row, which can be attended in place of its rows.
//
// RetroInfer (arXiv 2505.02922): clusters of 16 rows made of 8,192 at a time, as segments are here;
// the best clusters are read, the next ones estimated, the rest skipped.
//
// Kept for each KV head: where clusters begin, [clusters + 1] u16, in whole cache lines; then
// [clusters] mean keys, int8 as the codec of that name writes them.
#pragma once

#include "kernels/cpu/table.h"
#include "retrieval/index/head_records.h"
#include "retrieval/index/key_index.h"
#include "retrieval/index/kmeans.h"
#include "tiers/parameter.h"

namespace thermocline {

struct ClustersOptions {
  std::uint32_t cluster = 16;  // rows, on average
  KmeansOptions kmeans = {};
};

class ClustersIndex final : public KeyIndex {
 public:
  using Options = ClustersOptions;
  static std::span<const Parameter<Options>> parameters();
  // `cpu` outlives the index.
  ClustersIndex(const Options& options, const CpuTable& cpu) : options_(options), cpu_(cpu) {}

  std::string_view name() const override { return "clusters"; }
  SelectorFacts facts() const override { return {.order = RowOrder::own}; }
  // unsupported: key channels that are no multiple of 16.
  Result<Formation> form(const Sealing& sealing, const Workers& workers) const override;
  void save(const Formation& formation, RecordWriter* out) const override;
  Result<Formation> load(HeadShape shape, std::uint32_t heads, std::uint32_t rows,
                         RecordReader* in) const override;
  std::uint64_t index_bytes(HeadShape shape, std::uint64_t rows) const override;
  std::uint64_t summary_bytes(HeadShape shape, std::uint64_t rows) const override;
  std::optional<UnitFormat> unit_format() const override {
    return UnitFormat{.score = UnitScore::means};
  }
  std::uint32_t most_units(std::uint32_t rows) const override { return clusters(rows); }
  IndexedRows indexed(HeadShape shape, const SegmentIndex& index,
                      std::uint32_t head) const override;
  RowLayout summary_layout(HeadShape shape) const override;
  bool formed(const SegmentIndex& segment) const override;
  std::uint32_t units(const SegmentIndex& segment, std::uint32_t head) const override;
  std::uint32_t first_row(const SegmentIndex& segment, std::uint32_t head,
                          std::uint32_t unit) const override;
  std::uint64_t score(const KeyQuery& query, KeyScratch* scratch, float* score,
                      std::size_t stride) const override;

 private:
  std::uint32_t clusters(std::uint32_t rows) const;
  std::uint64_t head_bytes(HeadShape shape, std::uint32_t rows) const;
  std::span<std::uint16_t> starts(const HeadRecords& records, std::uint32_t head) const;
  std::byte* means(const HeadRecords& records, std::uint32_t head) const;

  ClustersOptions options_;
  const CpuTable& cpu_;
};

}  // namespace thermocline
