// sketch: two bits a channel of every key find the rows to read; clusters stand for all the others.
//
// Sealing clusters the keys of each KV head (about 16 rows a cluster), stores rows in cluster
// order, and keeps two things: the mean K and V of a cluster as a summary row (and of a group of
// some twenty), and the residual of each key to its cluster's stored mean, rotated, in two bits a
// channel (kernels/sketch.h). A step scores all means, and the rows of the most promising clusters
// as their cluster's score plus the sketch's (of very many clusters, those of the most promising
// groups of them, which k-means made beside them; the others' rows are estimated by their groups'
// means); takes a softmax for each query head together with the exact sinks and tail, adds the
// group's heads up, and reads the rows with most mass. A cluster's summary row is read in place of
// its unread rows, with the score that the cluster has already, and the log of their number as its
// weight.
//
// Ours. Its relatives: RetroInfer (arXiv 2505.02922) estimates what is not read from clusters; FIER
// (arXiv 2508.08256) ranks tokens by 1-bit keys, Twilight (arXiv 2502.02770) by 4-bit keys.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kernels/topk.h"
#include "retrieval/index/kmeans.h"
#include "retrieval/index/sketch_index.h"
#include "retrieval/select/selector.h"
#include "tiers/parameter.h"

namespace thermocline {

// Ranges: SketchSelector::parameters().
struct SketchOptions {
  double share = 0.02;          // of a timeline's length that is read in each KV head, sinks and
                                // tail included
  std::uint32_t min_rows = 64;  // and at least so many sealed rows
  std::uint32_t most_rows = 0;  // of the share, at most so many rows, however long the text: what a
                                // step asks for does not grow with it; 0: no bound
  std::uint32_t cluster = 16;   // rows a cluster, on average
  std::uint32_t bits = 2;       // 1, 2 or 4, a channel of a key's code
  double coded = 0;  // of the timeline's length: so many rows, less those that are read, are
                     // attended from their codes. 0: none, and values are not coded
  std::uint32_t value_bits = 2;  // 2 or 4, a channel of a value's code
  double candidates = 16;  // rows that are looked at, as a multiple of the budget; all of them,
                           // where those would be a third of all
  std::uint32_t least_candidates = 4096;  // and at least so many
  double reach = 1;  // their clusters are those best if a row's score may be so many deviations
                     // above its mean's
  std::uint32_t means = 8192;  // of clusters, that are scored; where a text has more than twice as
                               // many, those of the best groups of clusters. But at least twice as
                               // many as the candidates have
  KmeansOptions kmeans = {};
};

class SketchSelector final : public Selector {
 public:
  // What a method's file may say of the options.
  static std::span<const Parameter<SketchOptions>> parameters();
  // `cpu` outlives the selector.
  static Result<std::unique_ptr<SketchSelector>> create(const SketchOptions& options,
                                                        const CpuTable& cpu);

  std::string_view name() const override { return "sketch"; }
  SelectorFacts facts() const override { return {.order = RowOrder::own}; }
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
  // Clusters [first, last) of a run, whose means are scored.
  struct Patch {
    std::uint32_t run = 0, first = 0, last = 0;
    std::size_t at = 0;  // of cluster `first` among the board's units
    std::uint32_t clusters() const { return last - first; }
  };
  // Sixteens of rows of a patch, one after the other on the list's board.
  struct Stretch {
    std::uint32_t patch = 0, cluster = 0;  // the cluster of row `first`, of the patch's
    std::uint32_t first = 0, count = 0;
    std::uint32_t at = 0;  // of row `first` on the board
  };
  // Means of rows, whose scores by the query heads say what mass their rows have.
  struct Units {
    std::size_t count = 0;
    std::vector<float> score, weight, rating;  // [heads][count]; weight: e^(score - shift)
    std::vector<float> size, mass;             // [count]: its rows; the mass of one
    std::vector<float> shift;                  // [heads], and again up to heads + 16
    std::vector<float> beside, share;          // [heads]: of steady rows; one over all mass
    std::vector<float> rating_share;           // [heads]
    void grow(std::uint32_t heads);
  };
  // What one list is chosen with; grows with the timeline.
  struct alignas(64) Board {
    std::uint32_t budget = 0, coded_budget = 0;  // that of the coded rows holds the other
    bool everything = false;
    std::size_t clusters = 0, groups = 0;  // of all runs with a sketch
    std::uint64_t sealed_rows = 0;
    std::vector<const SketchIndex*> indexes;  // by run; null: another method formed it
    std::vector<float> rotated;
    std::vector<std::int8_t> query_code;
    std::vector<SketchQuery> queries;  // [heads]
    std::vector<float> reach;          // [heads]: what a spread is multiplied by
    bool grouped = false;              // whether only the best groups' clusters are scored
    Units group;                       // of all runs, one after the other, if so
    std::vector<RowSet> taken_groups;
    std::vector<Patch> patches;       // by run
    std::vector<std::uint32_t> lent;  // the units in patches of groups that are not taken
    std::size_t looked_at = 0;        // the clusters of all patches
    // The patches' clusters, then, if grouped, the groups: their rows that are in no patch.
    Units unit;
    std::vector<Stretch> stretches;
    std::size_t rows = 0;               // laid out on the board, padding included
    std::uint32_t real_rows = 0;        // padding not included
    std::vector<std::uint32_t> jobs;    // job j is the stretches [jobs[j], jobs[j + 1])
    std::vector<float> job_sum;         // [job][heads]
    std::vector<float> weight;          // [heads][rows]
    std::vector<float> mass;            // [rows], summed over the query heads
    std::vector<float> coded_weight;    // [heads][units]: of the coded rows
    std::vector<RowSet> has_coded;      // units
    std::vector<std::uint16_t> unread;  // [units]
    std::vector<RowSet> taken;          // scratch: of units, of the board's rows
    std::vector<RowSet> estimated;      // scratch: summaries of a run
    std::vector<RowSet> sets;           // rows to read: a word for each 64 rows of each run
    std::vector<RowSet> coded;          // and rows to attend from their codes
    std::uint64_t bytes = 0;            // of codes and summaries looked at
    TopRowsScratch top;
  };

  SketchSelector(const SketchOptions& options, const CpuTable& cpu);
  std::uint32_t clusters(std::uint32_t rows) const;   // of a segment
  std::uint32_t summaries(std::uint32_t rows) const;  // and its groups
  bool codes_values() const { return options_.coded > 0; }
  RowLayout code_layout(HeadShape shape) const;
  // The steps of choosing for one list, in their order; long loops are shared.
  void choose_list(HeadShape shape, const ListQuery& list, const Workers& workers, Board* board,
                   ReadList* out) const;
  void lay_out(HeadShape shape, const ListQuery& list, Board* board) const;
  void prepare_queries(HeadShape shape, const ListQuery& list, Board* board) const;
  void score(HeadShape shape, const ListQuery& list, const SketchIndex& index, std::uint32_t first,
             std::uint32_t count, float* out, std::size_t stride) const;
  void weigh(HeadShape shape, const ListQuery& list, Units* units) const;
  void rate(HeadShape shape, const Board& board, const float* spread, std::size_t count,
            std::size_t at, Units* units) const;
  void add_ratings(HeadShape shape, std::size_t count, Units* units) const;
  void find_patches(HeadShape shape, const ListQuery& list, Board* board) const;
  void rate_groups(HeadShape shape, const ListQuery& list, Board* board) const;
  static void add_patches(std::uint32_t run, const SketchIndex& index, std::uint32_t head,
                          std::size_t at, Board* board);
  void leave_groups(const ListQuery& list, Board* board) const;
  void score_units(HeadShape shape, const ListQuery& list, const Workers& workers,
                   Board* board) const;
  void rate_clusters(HeadShape shape, const ListQuery& list, Board* board) const;
  double candidates(const Board& board) const;
  bool looks_at_all(const Board& board) const;
  void look_at_all(const ListQuery& list, Board* board) const;
  void look_at_best(const ListQuery& list, Board* board) const;
  static void look_at(std::uint32_t patch, std::uint32_t head, std::uint32_t first,
                      std::uint32_t end, std::uint32_t cluster, Board* board);
  void count_uncovered(const ListQuery& list, Board* board) const;
  void lay_out_jobs(HeadShape shape, Board* board) const;
  static void fetch(HeadShape shape, std::uint32_t head, const Stretch& stretch,
                    const Board& board);
  void weigh_rows(HeadShape shape, const ListQuery& list, std::size_t job, Board* board) const;
  void add_heads(HeadShape shape, Board* board) const;
  void take_rows(const ListQuery& list, std::uint32_t budget, Board* board,
                 std::vector<RowSet>* sets) const;
  void write_codes(std::uint32_t heads, const ListQuery& list, Board* board, ReadList* out) const;
  void write_rows(const ListQuery& list, const Board& board, ReadList* out) const;
  void find_estimated(std::uint32_t run, const SketchIndex& index, std::uint32_t head,
                      const RowSet* sets, std::size_t patch, std::size_t group, Board* board) const;
  void write_summaries(std::uint32_t heads, const ListQuery& list, Board* board,
                       ReadList* out) const;
  static void write_everything(const ListQuery& list, ReadList* out);

  SketchOptions options_;
  const CpuTable& cpu_;
  std::vector<Board> boards_;  // a thread's, by Workers::slot()
};

}  // namespace thermocline
