// The key index that walks graphs of keys, made of a prefill's own queries (key_graph.h): one graph
// a segment and KV head, of the samples of all its query heads. Units are rows.
//
// All segments that are asked are walked as one, from the entries of each: those without a key that
// could be among the best are left after their entries, and which these are depends on nothing but
// the query and the segments.
#pragma once

#include <span>

#include "kernels/cpu/table.h"
#include "retrieval/index/key_graph.h"
#include "retrieval/index/key_graph_build.h"
#include "retrieval/index/key_index.h"
#include "tiers/parameter.h"

namespace thermocline {

// Ranges: GraphIndex::parameters().
struct GraphIndexOptions {
  std::uint32_t degree = GraphOptions{}.degree;
  std::uint32_t own = GraphOptions{}.own;
  std::uint32_t neighbours = GraphOptions{}.neighbours;
  // The best keys that a walk keeps for each query head; at least as many as rows are wanted, of
  // all query heads together.
  std::uint32_t beam = 250;
};

class GraphIndex final : public KeyIndex {
 public:
  using Options = GraphIndexOptions;
  static std::span<const Parameter<Options>> parameters();
  // invalid_argument: no link is left to what queries found.
  static Status check(const Options& options);
  GraphIndex(const Options& options, const CpuTable& cpu) : options_(options), cpu_(cpu) {}

  std::string_view name() const override { return "graph"; }
  SelectorFacts facts() const override {
    return {.watches = Watched::queries, .keys_in_memory = true};
  }
  // unsupported: key channels that are no multiple of 16.
  Result<Formation> form(const Sealing& sealing, const Workers& workers) const override;
  void save(const Formation& formation, RecordWriter* out) const override;
  Result<Formation> load(HeadShape shape, std::uint32_t heads, std::uint32_t rows,
                         RecordReader* in) const override;
  std::uint64_t index_bytes(HeadShape shape, std::uint64_t rows) const override;
  bool scores_all() const override { return false; }
  std::unique_ptr<KeyScratch> scratch() const override;
  bool formed(const SegmentIndex& segment) const override;
  std::uint32_t units(const SegmentIndex& segment, std::uint32_t head) const override;
  std::uint32_t first_row(const SegmentIndex& segment, std::uint32_t head,
                          std::uint32_t unit) const override;
  // With what scratch() made. The bytes of the keys that were looked at and of the links that were
  // followed.
  std::uint64_t score(const KeyQuery& query, KeyScratch* scratch, float* score,
                      std::size_t stride) const override;

 private:
  GraphShape graph_shape(HeadShape shape, std::uint32_t rows) const {
    return {rows, shape.key_dim, options_.degree};
  }
  std::uint64_t head_bytes(HeadShape shape, std::uint32_t rows) const;

  Options options_;
  const CpuTable& cpu_;
};

}  // namespace thermocline
