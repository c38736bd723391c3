// Last, what is read: rows; of a ladder the codes of others; and of all the rest their clusters'
// summaries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "retrieval/select/sketch_rows.h"

namespace thermocline {

class SketchReads {
 public:
  // Fills `out`, with log weights. Returns the bytes of codes and summaries in it.
  std::uint64_t write(const SketchList& list, const SketchMeans& means, SketchRows* rows,
                      ReadList* out);

 private:
  void write_rows(const SketchList& list, ReadList* out) const;
  std::uint64_t write_codes(const SketchList& list, const SketchMeans& means,
                            const SketchRows& rows, ReadList* out);
  std::uint64_t write_summaries(const SketchList& list, const SketchMeans& means, ReadList* out);
  void find_estimated(const SketchList& list, const SketchMeans& means, std::uint32_t run,
                      const RowSet* sets, std::size_t patch, std::size_t group);

  std::vector<RowSet> sets_;           // rows to read: a word for each block of each run
  std::vector<RowSet> coded_;          // and rows to attend from their codes
  std::vector<float> coded_weight_;    // [heads][units]: of those
  std::vector<RowSet> has_coded_;      // units
  std::vector<std::uint16_t> unread_;  // [units]: rows
  std::vector<RowSet> found_;          // scratch: clusters of a patch
  std::vector<RowSet> estimated_;      // scratch: summaries of a run
};

}  // namespace thermocline
