// ranked: reads the units of rows (rows, blocks, clusters) that a key index scores best. Most of
// the published selections are this with an index of their own.
//
// A step asks the index for the scores of all units of a KV head, takes for each query head the
// softmax over them, a unit of n rows counting n times, together with the exact sinks and tail, and
// combines the group's query heads to one rank of a row; units are read from the best rank on until
// the budget is used up.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kernels/cpu/table.h"
#include "kernels/topk.h"
#include "retrieval/index/key_index.h"
#include "retrieval/select/ranked_options.h"
#include "retrieval/select/ranked_rule.h"
#include "retrieval/select/selector.h"
#include "tiers/parameter.h"

namespace thermocline {

class RankedSelector final : public Selector {
 public:
  // What a method's file may say of the options.
  static std::span<const Parameter<RankedOptions>> parameters();
  // `cpu` outlives the selector. invalid_argument: an option outside of its range, or an estimate
  // of an index that has no summaries.
  static Result<std::unique_ptr<RankedSelector>> create(std::unique_ptr<KeyIndex> index,
                                                        const RankedOptions& options,
                                                        const CpuTable& cpu);

  std::string_view name() const override { return index_->name(); }
  SelectorFacts facts() const override { return index_->facts(); }
  const DeviceRule* device_rule() const override { return rule_.get(); }
  Result<Formation> form(const Sealing& sealing, const Workers& workers) const override {
    return index_->form(sealing, workers);
  }
  void save(const Formation& formation, RecordWriter* out) const override {
    index_->save(formation, out);
  }
  Result<Formation> load(HeadShape shape, std::uint32_t heads, std::uint32_t rows,
                         RecordReader* in) const override {
    return index_->load(shape, heads, rows, in);
  }
  // Everything, where the budget has room for it. Otherwise a unit is read whole or not at all: one
  // that no longer fits into the budget is passed over for the next. Units of score inf come
  // first, ties go to the lower row. A run that another index formed is read whole, above the
  // budget.
  Result<Chosen> choose(const LayerQuery& query, const Workers& workers,
                        std::span<ReadList> out) override;
  std::uint64_t index_bytes(HeadShape shape, std::uint64_t rows) const override {
    return index_->index_bytes(shape, rows);
  }
  std::uint64_t summary_bytes(HeadShape shape, std::uint64_t rows) const override {
    return index_->summary_bytes(shape, rows);
  }
  std::uint64_t always_rows(std::uint64_t rows) const override { return index_->always_rows(rows); }

 private:
  // What one list is chosen with; grows with the timeline. Units are those of all segments that are
  // asked, one after the other. Candidates are those that the index looked at: of a graph or a list
  // few of all, so nothing but finding them takes as long as there are units.
  struct alignas(64) Board {
    std::uint64_t budget = 0, estimated = 0, sealed_rows = 0;
    std::vector<const SegmentIndex*> asked;
    std::vector<std::uint32_t> first_unit;  // [asked + 1]
    std::vector<float> score;               // [heads][units], of each head candidates first
    std::vector<float> best;                // [units]: any head's score
    std::vector<std::uint32_t> unit;        // [candidates], ascending
    std::vector<float> size;                // [candidates]: rows
    std::vector<float> weight;              // [heads][candidates]
    std::vector<float> rank;                // [candidates]: of a row of it
    std::vector<float> share;               // [heads]: of the head's attention, that a weight 1 is
    std::vector<double> covered;            // [heads]: share of what is read, sinks and tail first
    std::vector<RowSet> taken;              // [candidates], a bit each
    std::vector<std::uint32_t> order;       // candidates, best first
    std::vector<std::uint32_t> read, summed;  // candidates, ascending: to be read, to be estimated
    std::unique_ptr<KeyScratch> scratch;
    TopRowsScratch top;

    std::size_t units() const { return first_unit.back(); }
    const float* scores(std::size_t head) const { return score.data() + head * units(); }
  };

  RankedSelector(std::unique_ptr<KeyIndex> index, const RankedOptions& options,
                 const CpuTable& cpu);
  // The steps of choosing for one list, in their order. Returns the bytes that were looked at.
  std::uint64_t choose_list(const LayerQuery& layer, const ListQuery& list, Board* board,
                            ReadList* out) const;
  void lay_out(const ListQuery& list, Board* board) const;
  std::uint64_t ask(HeadShape shape, const ListQuery& list, Board* board) const;
  void find_candidates(HeadShape shape, const ListQuery& list, Board* board) const;
  void gather_scores(HeadShape shape, Board* board) const;
  void weigh(HeadShape shape, const ListQuery& list, Board* board) const;
  void rank(HeadShape shape, Board* board) const;
  void order(Board* board) const;
  void take(HeadShape shape, Board* board) const;
  void write_rows(const ListQuery& list, const Board& board, ReadList* out) const;
  std::uint64_t write_summaries(HeadShape shape, const ListQuery& list, const Board& board,
                                ReadList* out) const;

  std::unique_ptr<KeyIndex> index_;
  RankedOptions options_;
  std::unique_ptr<RankedRule> rule_;  // null: no device can
  const CpuTable& cpu_;
  std::vector<Board> boards_;  // a thread's, by Workers::slot()
};

}  // namespace thermocline
