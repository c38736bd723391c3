// sketch: two bits a channel of every key find the rows to read; clusters stand for all the others.
//
// Sealing clusters the keys of each KV head (about 16 rows a cluster), stores rows in cluster
// order, and keeps two things: the mean K and V of a cluster as a summary row, and the residual of
// each key to its cluster's stored mean, rotated, in two bits a channel (kernels/sketch.h). A step
// scores every row as its cluster's exact score plus the sketch's, takes a softmax for each query
// head together with the exact sinks and tail, adds the group's heads up, and reads the rows with
// most mass. A cluster's summary row is read in place of its unread rows, with the log of their
// number as its weight.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "kernels/topk.h"
#include "retrieval/index/kmeans.h"
#include "retrieval/index/sketch_index.h"
#include "retrieval/select/selector.h"

namespace thermocline {

struct SketchOptions {
  double share = 0.02;          // of a timeline's length that is read in each KV head, [0, 1]
  std::uint32_t min_rows = 64;  // and at least so many rows, from 1
  std::uint32_t cluster = 16;   // rows a cluster, on average: [2, 1024]
  double candidates = 32;       // clusters whose rows are looked at, as a multiple of the budget's
                                // rows: [1, 1000]; clusters with less mass are only estimated
  KmeansOptions kmeans = {};    // iterations: [0, 100]; groups: [1, 1000]
};

class SketchSelector final : public Selector {
 public:
  // `cpu` outlives the selector.
  static Result<std::unique_ptr<SketchSelector>> create(const SketchOptions& options,
                                                        const CpuTable& cpu);

  SelectorFacts facts() const override { return {.name = "sketch", .order = "cluster"}; }
  Result<Formation> form(const Sealing& sealing, const Workers& workers) const override;
  // A run without a sketch (formed by another method) is read whole, above the budget.
  Chosen choose(HeadShape shape, std::span<const ListQuery> lists, const SummaryRows& summaries,
                const Workers& workers, std::span<ReadList> out) override;
  std::uint64_t index_bytes(HeadShape shape, std::uint64_t rows) const override;
  std::uint64_t summary_rows(std::uint64_t rows) const override;

 private:
  // Whole groups of one run's rows, one after the other on the list's board.
  struct Stretch {
    std::uint32_t run = 0, first = 0, count = 0;
    std::uint32_t at = 0;  // of row `first` on the board
  };
  // What one list is chosen with. `clusters` and `rows` are of all its runs with a sketch, one
  // after the other.
  struct Board {
    std::uint32_t budget = 0;
    bool everything = false;
    std::size_t clusters_at = 0, clusters = 0;  // in cluster_scores_ (times heads), cluster_mass_
    std::size_t scores_at = 0, stride = 0;      // in scores_: [heads][stride]
    std::size_t rows = 0;                       // laid out on the board, padding included
    std::size_t sets_at = 0;                    // in sets_: a word for each 64 rows of each run
    std::size_t first_job = 0, last_job = 0;
    std::vector<Stretch> stretches;
    std::vector<float> unread_sum, unread_max;  // [heads]: of the clusters that are not looked at
    std::vector<float> weights;                 // scratch: [clusters]
    std::vector<RowSet> taken;                  // scratch: of clusters, then of the board's rows
    std::uint64_t bytes = 0;                    // of codes and summaries looked at
    TopRowsScratch top;
  };
  struct ClusterJob {
    std::uint32_t list = 0, run = 0, first = 0, count = 0;
    std::size_t at = 0;  // of cluster `first` among the list's
  };
  struct RowJob {  // stretches [first, last) of a list's board
    std::uint32_t list = 0, first = 0, last = 0;
  };

  SketchSelector(const SketchOptions& options, const CpuTable& cpu);
  void lay_out(HeadShape shape, std::span<const ListQuery> lists);
  void prepare(HeadShape shape, std::span<const ListQuery> lists);
  void score_clusters(HeadShape shape, const ListQuery& list, const ClusterJob& job,
                      const SummaryRows& summaries);
  void pick_clusters(HeadShape shape, const ListQuery& list, Board* board);
  void lay_out_rows(std::size_t lists, HeadShape shape);
  static std::pair<std::size_t, std::size_t> board_range(const Board& board, const RowJob& job);
  void score_rows(HeadShape shape, const ListQuery& list, std::size_t job);
  void add_heads(HeadShape shape, const ListQuery& list, const Board& board);
  void take_rows(const ListQuery& list, Board* board);
  void write_rows(const ListQuery& list, const Board& board, ReadList* out) const;
  void write_summaries(const ListQuery& list, Board* board, ReadList* out) const;
  static void write_everything(const ListQuery& list, ReadList* out);

  SketchOptions options_;
  const CpuTable& cpu_;
  std::vector<float> log_;  // [kSegmentRows + 1]
  // Scratch of choose(); grows with the timelines.
  std::vector<Board> boards_;
  std::vector<ClusterJob> cluster_jobs_;
  std::vector<RowJob> row_jobs_;
  std::vector<float> cluster_scores_, cluster_mass_;  // [list][heads][clusters]; [list][clusters]
  std::vector<float> scores_, job_max_, job_sum_, rotated_;  // job_*: [job][heads]
  std::vector<std::int8_t> query_codes_;
  std::vector<SketchQuery> queries_;  // [list][heads]
  std::vector<RowSet> sets_;
};

}  // namespace thermocline
