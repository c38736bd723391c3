// sketch: two bits a channel of every key find the rows to read; clusters stand for all the others.
//
// Sealing clusters the keys of each KV head (about 16 rows a cluster), stores rows in cluster
// order, and keeps two things: the mean K and V of a cluster as a summary row (and of a group of
// some twenty), and the residual of each key to its cluster's stored mean, rotated, in two bits a
// channel (kernels/sketch.h). A step scores all means, and the rows of the most promising clusters
// as their cluster's score plus the sketch's (of very many clusters, those of the most promising
// groups of them, which k-means made beside them; the others' rows are estimated by their groups'
// means); takes a softmax for each query head together with the exact sinks and tail, adds the
// group's heads up, and reads the rows with most mass (a ladder attends those from codes, and reads
// the ones of them whose codes would lose most). A cluster's summary row is read in place of its
// unread rows, with the score that the cluster has already, and the log of their number as its
// weight.
//
// With bits = 16 the keys themselves rank the rows, and all else is the same: no method to run but
// one to measure what the codes cost.
//
// Ours. Its relatives: RetroInfer (arXiv 2505.02922) estimates what is not read from clusters; FIER
// (arXiv 2508.08256) ranks tokens by 1-bit keys, Twilight (arXiv 2502.02770) by 4-bit keys.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "retrieval/select/selector.h"
#include "retrieval/select/sketch_options.h"
#include "retrieval/select/sketch_rule.h"
#include "tiers/parameter.h"

namespace thermocline {

class SketchSelector final : public Selector {
 public:
  ~SketchSelector() override;
  // What a method's file may say of the options.
  static std::span<const Parameter<SketchOptions>> parameters();
  // `cpu` outlives the selector.
  static Result<std::unique_ptr<SketchSelector>> create(const SketchOptions& options,
                                                        const CpuTable& cpu);

  std::string_view name() const override { return "sketch"; }
  SelectorFacts facts() const override {
    return {.order = RowOrder::own, .keys_in_memory = options_.keeps_keys()};
  }
  const DeviceRule* device_rule() const override {
    return options_.keeps_keys() ? nullptr : &rule_;
  }
  Result<Formation> form(const Sealing& sealing, const Workers& workers) const override;
  void save(const Formation& formation, RecordWriter* out) const override;
  Result<Formation> load(HeadShape shape, std::uint32_t heads, std::uint32_t rows,
                         RecordReader* in) const override;
  // A run without a sketch (formed by another method) is read whole, above the budget.
  Result<Chosen> choose(const LayerQuery& query, const Workers& workers,
                        std::span<ReadList> out) override;
  std::uint64_t index_bytes(HeadShape shape, std::uint64_t rows) const override;
  std::uint64_t summary_bytes(HeadShape shape, std::uint64_t rows) const override;
  std::uint64_t code_bytes(HeadShape shape, std::uint64_t rows) const override;

 private:
  struct Board;  // what one list is chosen with: sketch_choose.cpp

  SketchSelector(const SketchOptions& options, const CpuTable& cpu);
  std::uint32_t summaries(std::uint32_t rows) const;  // clusters of a segment, and groups of those

  SketchOptions options_;
  SketchRule rule_;
  const CpuTable& cpu_;
  std::vector<Board> boards_;  // a thread's, by Workers::slot()
};

}  // namespace thermocline
