// What a method's file may say of how units are ranked and read (retrieval/select/ranked.h), and
// what follows from it alone.
#pragma once

#include <cstdint>

#include "kernels/device_choice.h"

namespace thermocline {

// How the query heads of a group are combined to one rank.
//   sum   of each head's attention to the row, as the scores have it: a head that has nearly all of
//         its attention in sinks and tail has little to say
//   max   of the same: about the union of what each head would take that gives them a share of its
//         own attention
//   vote  the sum of shares of what lies beside sinks and tail, so each head has as much to say as
//         every other: TokenSelect's soft vote (arXiv 2411.02886)
inline constexpr std::uint32_t kGroupSum = 0, kGroupMax = 1, kGroupVote = 2;
static_assert(kGroupSum == static_cast<std::uint32_t>(GroupRank::sum) &&
              kGroupMax == static_cast<std::uint32_t>(GroupRank::max) &&
              kGroupVote == static_cast<std::uint32_t>(GroupRank::vote));

// Ranges: RankedSelector::parameters().
struct RankedOptions {
  double share = 0.02;          // of a timeline's length that is read in each KV head, sinks and
                                // tail included
  std::uint32_t rows = 0;       // so many are read instead, whatever the length; 0: `share`
  std::uint32_t min_rows = 64;  // and at least so many sealed rows
  double mass = 0;  // reading ends earlier, when so much of each query head's attention is covered,
                    // as the scores estimate it; 0: never
  std::uint32_t group = kGroupSum;
  std::uint32_t dense_layers = 0;  // the first so many layers of the model read everything
  double estimate = 0;  // of the sealed rows: so many of those next in rank are attended by their
                        // unit's summary. Of an index with summaries.

  GroupRank rank_of_group() const { return static_cast<GroupRank>(group); }
  // Of sealed rows, for a list of a timeline of `length` positions that reads `steady_rows` beside
  // them: how many are read at most; and of how many, where `sealed` are there, a summary is.
  std::uint32_t budget(std::uint32_t length, std::uint32_t steady_rows) const;
  std::uint32_t estimated(std::uint64_t sealed) const;
};

}  // namespace thermocline
