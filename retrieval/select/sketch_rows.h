// Then, rows: what attention each has by its code or its key, of the most promising clusters or of
// all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/topk.h"
#include "retrieval/select/sketch_means.h"

namespace thermocline {

// Rows of a patch that were looked at, from a whole sixteen on; one stretch after the other in
// whole sixteens.
struct SketchStretch {
  std::uint32_t patch = 0, cluster = 0;  // the cluster of row `first`, of the patch's
  std::uint32_t first = 0, count = 0;    // rows of the run
  std::uint32_t at = 0;                  // of row `first` among the rows looked at
};

class SketchRows {
 public:
  // `means` are rated unless list.looks_at_all(). Their units have the rows that were not looked at
  // afterwards, and `share` of all weight as it is known then.
  void look(const SketchList& list, SketchMeans* means);
  // ORs rows into `read` and, where rows are attended from codes, into `coded`: a word a block, of
  // the runs with a sketch. Those with most mass are read. Where there are codes, they are coded,
  // and of them those are read whose codes would lose most: how far a code is off grows with its
  // scale, in the key as, by and large, in the value, so that is the mass times the scale's square.
  void take(const SketchList& list, const SketchMeans& means, RowSet* read, RowSet* coded);

  // By patch, ascending.
  std::span<const SketchStretch> stretches() const { return stretches_; }
  // Looked at, padding included.
  std::size_t rows() const { return rows_; }
  // By query head, rows() apart: e^(score - shift) of row i of those looked at.
  const float* weight(std::size_t i) const { return weight_.data() + i; }

 private:
  void look_at_all(const SketchList& list, const SketchMeans& means);
  void look_at_best(const SketchList& list, const SketchMeans& means);
  void look_at(const SketchList& list, const SketchMeans& means, std::uint32_t patch,
               std::uint32_t first, std::uint32_t end, std::uint32_t cluster);
  void count_uncovered(const SketchList& list, SketchMeans* means) const;
  void lay_out_jobs(const SketchList& list);
  void fetch(const SketchList& list, const SketchMeans& means, std::uint32_t stretch) const;
  void weigh(const SketchList& list, const SketchMeans& means, std::size_t job);
  void weigh_keys(const SketchList& list, const SketchMeans& means, const SketchStretch& stretch,
                  float* sum);
  void add_heads(const SketchList& list, SketchMeans* means);
  // Leaves so many rows in best_ as are to be read: of those in it.
  void keep_what_codes_lose_most(const SketchList& list, const SketchMeans& means);
  // What is in best_.
  void add_best(const SketchList& list, const SketchMeans& means, RowSet* sets) const;

  std::vector<SketchStretch> stretches_;
  std::size_t rows_ = 0;
  std::uint32_t real_rows_ = 0;      // padding not included
  std::vector<std::uint32_t> jobs_;  // job j is the stretches [jobs[j], jobs[j + 1])
  std::vector<float> job_sum_;       // [job][heads]
  std::vector<float> weight_;        // [heads][rows]
  std::vector<float> mass_;          // [rows], summed over the query heads
  std::vector<RowSet> best_;         // scratch: of clusters, of rows
  std::vector<float> loss_;          // scratch: what the codes of those rows lose,
  std::vector<RowSet> kept_;         // and which of them lose most
  TopRowsScratch top_;
};

}  // namespace thermocline
