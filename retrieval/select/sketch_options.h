// What a method's file may say of the sketch (retrieval/select/sketch.h), and what follows from it
// alone.
#pragma once

#include <cstdint>

#include "retrieval/index/kmeans.h"
#include "retrieval/index/sketch_index.h"
#include "tiers/block.h"

namespace thermocline {

// Ranges: SketchSelector::parameters().
struct SketchOptions {
  double share = 0.02;             // of a timeline's length that is read in each KV head, sinks and
                                   // tail included
  std::uint32_t min_rows = 64;     // and at least so many sealed rows
  std::uint32_t most_rows = 1024;  // of the share, at most so many rows, however long the text:
                                   // what a step asks for does not grow with it; 0: no bound
  std::uint32_t cluster = 16;  // rows a cluster, on average
  std::uint32_t bits = 2;      // 1, 2 or 4, a channel of a key's code; 16: the key itself, which
                               // goes with `coded` = 0
  double coded = 0;  // of the timeline's length: so many rows, sinks, tail and what is read of
                     // them included, are attended at least from their codes. 0: none, and values
                     // are not coded
  std::uint32_t most_coded = 0;  // at most so many rows of `coded`, as most_rows; 0: no bound
  std::uint32_t value_bits = 2;  // 2 or 4, a channel of a value's code
  double candidates = 8;  // rows that are looked at, as a multiple of the budget; all of them,
                          // where those would be a third of all
  std::uint32_t least_candidates = 8192;  // and at least so many
  double reach = 0.33;  // their clusters are those best if a row's score may be so many deviations
                        // above its mean's
  std::uint32_t means = 8192;  // of clusters, that are scored; where a text has more than twice as
                               // many, those of the best groups of clusters. But at least twice as
                               // many as the candidates have
  KmeansOptions kmeans = {};

  // Of sealed rows, for a list of a timeline of `length` positions that reads `steady_rows` beside
  // them: how many are read, though there may be fewer; and how many are attended at least by their
  // codes, read ones included, or 0 where values are not coded.
  struct Budget {
    std::uint32_t read = 0, coded = 0;
  };
  Budget budget(std::uint32_t length, std::uint32_t steady_rows) const;
  bool codes_values() const { return coded > 0; }
  bool keeps_keys() const { return bits == SketchIndex::kKeyBits; }
  std::uint32_t clusters(std::uint32_t rows) const { return (rows + cluster - 1) / cluster; }
  // Values alone: a summary's key is in the index, a code's is its row's, and scores come with the
  // read.
  static RowLayout summary_layout(HeadShape shape);
  RowLayout code_layout(HeadShape shape) const;
};

}  // namespace thermocline
