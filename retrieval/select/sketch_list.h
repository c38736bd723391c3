// What the stages of a sketch's choosing share: one list's question, the runs it is asked of, and
// how many of their rows may be read. The stages, in their order: sketch_means.h scores clusters,
// sketch_rows.h looks at codes of rows, sketch_reads.h writes down what is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/sketch.h"
#include "retrieval/index/sketch_index.h"
#include "retrieval/scratch.h"
#include "retrieval/select/selector.h"
#include "retrieval/select/sketch_options.h"

namespace thermocline {

// Of rows, in groups of kSketchGroup, so many of which hold them.
constexpr std::uint32_t sixteens(std::uint32_t rows) {
  return (rows + kSketchGroup - 1) / kSketchGroup;
}

// Of two vectors, in four lanes.
float sum_of_products(const float* a, const float* b, std::size_t n);

// Taken up for one list after the other by one thread; its memory grows with the timeline.
struct SketchList {
  // Both outlive it.
  SketchList(const SketchOptions& of, const CpuTable& table) : options(of), cpu(table) {}

  // `list` and `workers` live until the next call.
  void begin(HeadShape shape, const ListQuery& list, const Workers& workers);
  // Rounds the queries to what codes are multiplied with.
  void prepare_queries();

  // Of a run with a sketch, this list's KV head.
  std::span<const std::uint16_t> starts(std::uint32_t run) const {
    return indexes[run]->starts(asked->head);
  }
  std::span<const std::uint16_t> group_starts(std::uint32_t run) const {
    return indexes[run]->group_starts(asked->head);
  }
  // Rows that are worth a look at their codes.
  double candidates() const;
  // Clusters lie anywhere in the sixteens of rows that a look takes whole: those that hold a third
  // of the rows touch most sixteens, and one look at everything in order costs less.
  bool looks_at_all() const { return 3 * candidates() >= static_cast<double>(rows); }
  bool codes_values() const { return options.codes_values(); }
  // body(first, last) over [0, jobs), with other threads' help if `shared`.
  template <typename Body>
  void spread(std::size_t jobs, bool shared, const Body& body) const {
    if (shared)
      workers->parallel(jobs, 1, body);
    else if (jobs > 0)
      body(0, jobs);
  }

  const SketchOptions& options;
  const CpuTable& cpu;
  HeadShape shape;
  const ListQuery* asked = nullptr;
  const Workers* workers = nullptr;
  std::vector<const SketchIndex*> indexes;  // by run; null: another method formed it
  std::uint64_t rows = 0;                   // of all runs with a sketch, as the next three
  std::size_t blocks = 0, clusters = 0, groups = 0;
  std::uint32_t budget = 0, coded_budget = 0;  // rows to read; and with those that codes stand for
  bool everything = false;                     // the budget holds all rows; nothing else is asked
  std::vector<SketchQuery> queries;            // [heads]
  std::vector<float> reach;                    // [heads]: what a spread is multiplied by

 private:
  std::vector<float> rotated_;
  std::vector<std::int8_t> codes_;
};

}  // namespace thermocline
