// What holds for every read list, and when two are the same.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <span>

#include "tiers/block.h"

namespace thermocline {

// What the header of ReadList promises.
inline void check_well_formed(const ReadList& list, std::span<const Run> runs) {
  std::size_t weights = 0, next_pick = 0;
  for (const Read& read : list.reads) {
    ASSERT_LT(read.run, runs.size());
    if (read.everything) continue;
    ASSERT_EQ(read.first, next_pick);
    ASSERT_LT(read.first, read.last);
    next_pick = read.last;
    const Segment& segment = runs[read.run].in(read.form);
    ASSERT_TRUE(read.scored || !read.residual);
    if (read.weights_a_row > 0) {
      ASSERT_EQ(read.first_weight, weights);
    }
    for (std::uint32_t p = read.first; p < read.last; ++p) {
      const Pick& pick = list.picks[p];
      ASSERT_LT(pick.block, segment.blocks());
      ASSERT_NE(pick.rows, 0u);
      if (p > read.first) {
        ASSERT_LT(list.picks[p - 1].block, pick.block);
      }
      const std::uint32_t rows = segment.rows - pick.block * kBlockRows;
      ASSERT_EQ(pick.rows & ~first_rows(static_cast<int>(std::min(rows, 64u))), 0u);
      weights += static_cast<std::size_t>(count(pick.rows)) * read.weights_a_row;
    }
  }
  ASSERT_EQ(next_pick, list.picks.size());
  ASSERT_EQ(weights, list.log_weight.size());
}

inline bool same_reads(const ReadList& a, const ReadList& b) {
  const auto same_read = [](const Read& x, const Read& y) {
    return x.run == y.run && x.form == y.form && x.everything == y.everything &&
           x.first == y.first && x.last == y.last && x.weights_a_row == y.weights_a_row &&
           x.scored == y.scored && x.residual == y.residual && x.first_weight == y.first_weight;
  };
  const auto same_pick = [](const Pick& x, const Pick& y) {
    return x.block == y.block && x.rows == y.rows;
  };
  return std::equal(a.reads.begin(), a.reads.end(), b.reads.begin(), b.reads.end(), same_read) &&
         std::equal(a.picks.begin(), a.picks.end(), b.picks.begin(), b.picks.end(), same_pick) &&
         a.log_weight == b.log_weight;
}

}  // namespace thermocline
