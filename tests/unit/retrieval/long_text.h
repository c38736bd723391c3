// A text of many segments, and which of its rows a selector reads: what tests of recall share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "tests/unit/retrieval/read_list_checks.h"
#include "tests/unit/retrieval/sealed_keys.h"

namespace thermocline {

// 200,000 rows, 25 segments of which the last is shorter. Neighbours are alike, 24 around a topic
// as in texts, since blocks of rows that have nothing in common find nothing. The first rows of
// three segments are one key, alone in its last channel, in which queries do not look unless they
// ask for it.
class LongText {
 public:
  static constexpr HeadShape kShape{1, 32, 16};
  static constexpr std::uint32_t kRows = 200000, kAlike = 800;
  static constexpr std::uint32_t kBeginAlike[] = {2 * kSegmentRows, 9 * kSegmentRows,
                                                  24 * kSegmentRows};

  LongText() : rows_(kShape, 1, kRows, 1, 5) {
    constexpr std::uint32_t kDim = kShape.key_dim, kTopics = 1500, kTogether = 24;
    std::normal_distribution<float> normal;
    std::vector<float> offset(kDim), topics(kTopics * kDim);
    for (float& x : offset) x = 3.0f * normal(random_);
    for (float& x : topics) x = 2.0f * normal(random_);
    std::uint32_t topic = 0;
    for (std::uint32_t r = 0; r < kRows; ++r) {
      if (r % kTogether == 0) topic = random_() % kTopics;
      for (std::uint32_t d = 0; d + 1 < kDim; ++d)
        rows_.key(0, r)[d] = to_f16(offset[d] + topics[topic * kDim + d] + normal(random_));
      rows_.key(0, r)[kDim - 1] = to_f16(0.1f * normal(random_));
    }
    for (const std::uint32_t first : kBeginAlike)
      for (std::uint32_t r = first; r < first + kAlike; ++r) {
        for (std::uint32_t d = 0; d + 1 < kDim; ++d) rows_.key(0, r)[d] = to_f16(offset[d]);
        rows_.key(0, r)[kDim - 1] = to_f16(60.0f);
      }
    for (std::uint32_t q = 0; q < kShown; ++q) {
      const std::vector<float> query = this->query();
      shown_.insert(shown_.end(), query.begin(), query.end());
    }
  }

  std::vector<float> query() {
    std::normal_distribution<float> normal(0.0f, 0.3f);
    std::vector<float> query(kShape.key_dim);
    for (float& q : query) q = normal(random_);
    query.back() = 0;
    return query;
  }
  // With queries of a prefill.
  Sealing sealing(std::uint32_t first, std::uint32_t rows) const {
    Sealing sealing = rows_.sealing(first, rows);
    sealing.queries = kShown;
    sealing.query = shown_.data();
    return sealing;
  }
  // The `count` rows of the first `rows` whose keys score best.
  std::set<std::uint32_t> best(const std::vector<float>& query, std::uint32_t rows,
                               std::uint32_t count) const {
    const Sealing sealing = rows_.sealing();
    std::vector<std::pair<double, std::uint32_t>> score;
    for (std::uint32_t r = 0; r < rows; ++r) {
      const f16* key = sealing.rows.key(0, r);
      double sum = 0;
      for (std::size_t d = 0; d < query.size(); ++d) sum += double{query[d]} * to_float(key[d]);
      score.emplace_back(-sum, r);
    }
    std::nth_element(score.begin(), score.begin() + count, score.end());
    std::set<std::uint32_t> best;
    for (std::uint32_t i = 0; i < count; ++i) best.insert(score[i].second);
    return best;
  }

 private:
  static constexpr std::uint32_t kShown = 128;
  std::mt19937 random_{6};
  SyntheticRows rows_;
  std::vector<float> shown_;
};

// The rows that are read in one of `forms`, as they were before the selector reordered them.
inline std::set<std::uint32_t> rows_of_text(Selector& selector, const std::vector<float>& query,
                                            const std::vector<Run>& runs,
                                            const std::vector<std::vector<std::uint32_t>>& orders,
                                            std::uint32_t rows,
                                            const std::set<Form>& forms = {Form::rows}) {
  const ListQuery list{0, rows, query.data(), {}, 0, runs};
  std::vector<ReadList> out(1);
  EXPECT_TRUE(selector.choose({{}, LongText::kShape, {&list, 1}}, Workers(2), out));
  check_well_formed(out[0], runs);
  std::set<std::uint32_t> read_rows;
  for (const Read& read : out[0].reads) {
    if (!forms.contains(read.form)) continue;
    const std::vector<std::uint32_t>& order = orders[read.run];
    for (std::uint32_t p = read.first; p < read.last; ++p)
      for (std::uint32_t bit = 0; bit < kBlockRows; ++bit) {
        if (!(out[0].picks[p].rows >> bit & 1)) continue;
        const std::uint32_t stored = out[0].picks[p].block * kBlockRows + bit;
        read_rows.insert(read.run * kSegmentRows + (order.empty() ? stored : order[stored]));
      }
  }
  return read_rows;
}

}  // namespace thermocline
