// Choosing by units on the device: scores and ranks against plain loops in double; what is taken by
// them, exactly.
#include "kernels/cuda/ranked.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/format/row.h"
#include "tests/unit/cuda/on_device.h"
#include "tests/unit/cuda/stream_test.h"

namespace thermocline::cuda {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr float kAlways = std::numeric_limits<float>::infinity();

std::uint32_t whole_blocks(std::uint32_t rows) { return blocks_of(rows) * kBlockRows; }

bool holds(const std::vector<RowSet>& sets, std::uint32_t at) {
  return (sets[at / kBlockRows] >> at % kBlockRows & 1) != 0;
}

// One run's units on the host: bounds[u] to bounds[u + 1] are the rows of unit u.
struct Units {
  std::uint32_t rows = 0;
  std::vector<std::uint16_t> bounds;
  std::vector<std::byte> keys;
  std::vector<std::byte> always;
  std::uint32_t count() const { return static_cast<std::uint32_t>(bounds.size()) - 1; }
};

struct List {
  std::vector<Units> runs;
  std::vector<float> query, steady_max, steady_sum;
  std::uint32_t budget = 0, estimated = 0;
  std::vector<ChoiceRun> placed;  // where each lies in the list
  std::uint32_t rows = 0, units = 0;
};

// A board's contents for one list.
struct Seen {
  std::vector<float> score, rank, log_weight;
  std::vector<RowSet> sets, taken, estimated;
  std::uint32_t read = 0, summaries = 0;
};

// The rows of a unit of a list, by its number there.
std::uint32_t rows_of(const List& list, std::uint32_t unit) {
  for (std::size_t r = 0; r < list.runs.size(); ++r) {
    const std::uint32_t at = unit - list.placed[r].first_unit;
    if (unit >= list.placed[r].first_unit && at < list.runs[r].count())
      return list.runs[r].bounds[at + 1] - list.runs[r].bounds[at];
  }
  return 0;
}

class RankedTest : public StreamTest {
 protected:
  float normal() { return std::normal_distribution<float>()(random_); }

  std::uint32_t key_bytes(const ChoiceShape& shape) const {
    const std::uint32_t dim = shape.head.key_dim;
    switch (shape.unit.score) {
      case UnitScore::means:
        return row_bytes(RowFormat::int8, dim);
      case UnitScore::landmarks:
        return dim * sizeof(f16);
      default:
        return 2 * dim * sizeof(f16);
    }
  }

  // Of shape.unit.rows rows each; or, of 0, of 0 to 39. Every eighth is keyed as the one before it.
  Units units(const ChoiceShape& shape, std::uint32_t rows) {
    Units made;
    made.rows = rows;
    made.bounds.push_back(0);
    while (made.bounds.back() < rows) {
      const auto more =
          static_cast<std::uint32_t>(shape.unit.rows > 0 ? shape.unit.rows : random_() % 40);
      made.bounds.push_back(static_cast<std::uint16_t>(std::min(rows, made.bounds.back() + more)));
    }
    const std::uint32_t dim = shape.head.key_dim, bytes = key_bytes(shape);
    made.keys.resize(std::size_t{made.count()} * bytes);
    for (std::uint32_t u = 0; u < made.count(); ++u) {
      std::byte* key = made.keys.data() + std::size_t{u} * bytes;
      if (u % 8 == 1) {
        std::copy_n(key - bytes, bytes, key);
        continue;
      }
      if (shape.unit.score == UnitScore::means) {
        for (std::uint32_t i = 0; i < dim; ++i) key[i] = static_cast<std::byte>(random_());
        const f16 scale = to_f16(std::abs(normal()) * 0.02f);
        std::copy_n(reinterpret_cast<const std::byte*>(&scale), sizeof scale, key + dim);
        continue;
      }
      auto* half = reinterpret_cast<f16*>(key);
      for (std::uint32_t i = 0; i < bytes / sizeof(f16); ++i) half[i] = to_f16(normal());
      for (std::uint32_t i = 0; i < dim; ++i) {
        const float a = to_float(half[i]), b = bytes > 2 * dim ? to_float(half[dim + i]) : 0;
        if (shape.unit.score == UnitScore::bounds) {
          half[i] = to_f16(std::min(a, b));
          half[dim + i] = to_f16(std::max(a, b));
        } else if (shape.unit.score == UnitScore::moments) {
          half[dim + i] = to_f16(std::abs(b));
        }
      }
    }
    if (shape.unit.score == UnitScore::landmarks) {
      made.always.resize(made.count());
      made.always[made.count() / 2] = std::byte{1};
    }
    return made;
  }

  List list(const ChoiceShape& shape, const std::vector<std::uint32_t>& rows, std::uint32_t budget,
            std::uint32_t estimated) {
    List made;
    for (const std::uint32_t of_run : rows) made.runs.push_back(units(shape, of_run));
    for (std::uint32_t i = 0; i < shape.head.heads * shape.head.key_dim; ++i)
      made.query.push_back(2 * normal() / std::sqrt(static_cast<float>(shape.head.key_dim)));
    made.budget = budget;
    made.estimated = estimated;
    return made;
  }

  std::vector<Seen> choose_all(std::vector<List>* lists, ChoiceShape shape) {
    shape.lists = static_cast<std::uint32_t>(lists->size());
    PutOnDevice there;
    std::vector<ChoiceList> given;
    for (List& list : *lists) {
      list.placed.clear();
      list.rows = list.units = 0;
      for (const Units& run : list.runs) {
        ChoiceRun on;
        on.rows = run.rows;
        on.units = run.count();
        on.first_row = list.rows;
        on.first_unit = list.units;
        on.unit_keys = there.put(run.keys);
        on.unit_key_bytes = key_bytes(shape);
        if (shape.unit.rows == 0) on.starts = there.put(run.bounds);
        if (!run.always.empty()) on.always = there.put(run.always);
        on.row = there.put(std::vector<std::byte>(std::size_t{run.rows} * shape.row_bytes)) +
                 shape.key_bytes;
        on.summary =
            there.put(std::vector<std::byte>(std::size_t{run.count()} * shape.summary_bytes));
        list.placed.push_back(on);
        list.rows += whole_blocks(run.rows);
        list.units += whole_blocks(run.count());
      }
      ChoiceList one;
      one.runs = {there.put(list.placed), list.placed.size()};
      one.rows = list.rows;
      one.units = list.units;
      one.budget = list.budget;
      one.estimated = list.estimated;
      one.query = there.put(list.query);
      if (!list.steady_sum.empty()) {
        one.steady_max = there.put(list.steady_max);
        one.steady_sum = there.put(list.steady_sum);
      }
      given.push_back(one);
      shape.most_runs = std::max(shape.most_runs, static_cast<std::uint32_t>(list.runs.size()));
      shape.most_rows = std::max(shape.most_rows, list.rows);
      shape.most_units = std::max(shape.most_units, list.units);
      shape.most_budget = std::max(shape.most_budget, list.budget);
    }
    const OnDevice<ChoiceList> on_device(given);
    const OnDevice<std::byte> memory(
        std::vector<std::byte>(ChoiceBoard::bytes(shape), std::byte{0xff}));
    const ChoiceBoard board = ChoiceBoard::cut(shape, memory.data());
    const Status status = choose(*stream_, shape, on_device.span(), board);
    EXPECT_TRUE(status.has_value()) << status.error().message;
    const Status waited = stream_->wait();
    EXPECT_TRUE(waited.has_value()) << waited.error().message;
    std::vector<Seen> seen;
    const std::size_t heads = shape.head.heads, summed = shape.summary_bytes > 0 ? 1 : 0;
    for (std::size_t l = 0; l < lists->size(); ++l) {
      const auto copy = [&](const auto* from, std::size_t of_list) {
        using T = std::remove_cvref_t<decltype(*from)>;
        return OnDevice<T>::copy_of(from + l * of_list, of_list);
      };
      seen.push_back({copy(board.unit_score, heads * shape.most_units),
                      copy(board.rank, shape.most_units),
                      copy(board.log_weight, summed * heads * shape.most_units),
                      copy(board.sets, shape.most_rows / kBlockRows),
                      copy(board.taken, shape.most_units / kBlockRows),
                      copy(board.estimated, summed * shape.most_units / kBlockRows),
                      copy(board.read, 1)[0], copy(board.summaries, 1)[0]});
      seen.back().score.resize(heads * shape.most_units);
    }
    most_units_ = shape.most_units;
    return seen;
  }

  void expect_scores(const List& list, const Seen& seen, const ChoiceShape& shape) const {
    const std::uint32_t dim = shape.head.key_dim;
    for (std::uint32_t h = 0; h < shape.head.heads; ++h)
      for (std::size_t r = 0; r < list.runs.size(); ++r)
        for (std::uint32_t u = 0; u < whole_blocks(list.runs[r].count()); ++u) {
          const Units& run = list.runs[r];
          const float got =
              seen.score[std::size_t{h} * most_units_ + list.placed[r].first_unit + u];
          if (u >= run.count() || run.bounds[u] == run.bounds[u + 1]) {
            ASSERT_EQ(got, kNone);
            continue;
          }
          if (!run.always.empty() && run.always[u] != std::byte{0}) {
            ASSERT_EQ(got, kAlways);
            continue;
          }
          const std::byte* key = run.keys.data() + std::size_t{u} * key_bytes(shape);
          const auto* half = reinterpret_cast<const f16*>(key);
          const double scale = to_float(*reinterpret_cast<const f16*>(key + dim));  // of a mean
          double score = 0, terms = 0, variance = 0;
          for (std::uint32_t i = 0; i < dim; ++i) {
            const double q = list.query[h * dim + i];
            double term = 0;
            switch (shape.unit.score) {
              case UnitScore::means:
                term = q * static_cast<std::int8_t>(key[i]) * scale;
                break;
              case UnitScore::bounds:
                term = std::max(q * double{to_float(half[i])}, q * double{to_float(half[dim + i])});
                break;
              case UnitScore::moments:
                variance += q * q * double{to_float(half[dim + i])};
                [[fallthrough]];
              case UnitScore::landmarks:
                term = q * double{to_float(half[i])};
            }
            score += term;
            terms += std::abs(term);
          }
          const double spread = double{shape.unit.alpha} * std::sqrt(variance);
          ASSERT_NEAR(got, score + spread, 16 * 0x1p-24 * (terms + spread)) << "unit " << u;
        }
  }

  // By the device's own scores.
  void expect_ranks(const List& list, const Seen& seen, const ChoiceShape& shape) const {
    std::vector<double> rank(list.units, -1.0);
    for (std::uint32_t h = 0; h < shape.head.heads; ++h) {
      const float* score = seen.score.data() + std::size_t{h} * most_units_;
      double most = kNone, sum = 0;
      for (std::uint32_t u = 0; u < list.units; ++u)
        if (score[u] < kAlways) most = std::max(most, double{score[u]});
      for (std::uint32_t u = 0; u < list.units; ++u)
        if (score[u] > kNone && score[u] < kAlways)
          sum += std::exp(score[u] - most) * rows_of(list, u);
      if (!list.steady_sum.empty() && shape.unit.group != GroupRank::vote)
        sum += list.steady_sum[h] * std::exp(list.steady_max[h] - most);
      for (std::uint32_t u = 0; u < list.units; ++u) {
        if (!(score[u] > kNone)) continue;
        if (score[u] == kAlways) rank[u] = std::numeric_limits<float>::max();
        rank[u] = std::max(rank[u], 0.0);
        if (score[u] == kAlways) continue;
        const double said = std::exp(score[u] - most) / sum;
        rank[u] = shape.unit.group == GroupRank::max ? std::max(rank[u], said) : rank[u] + said;
      }
    }
    for (std::uint32_t u = 0; u < list.units; ++u)
      ASSERT_NEAR(seen.rank[u], rank[u], 1e-4 * std::abs(rank[u])) << "unit " << u;
  }

  // By the device's own ranks: in their order what fits, down to the best so many.
  void expect_taken(const List& list, const Seen& seen, const ChoiceShape& shape) const {
    // What the host looks at, and whatever ranks as the last of that.
    std::vector<float> ranks;
    for (std::uint32_t u = 0; u < list.units; ++u)
      if (seen.rank[u] >= 0) ranks.push_back(seen.rank[u]);
    std::ranges::sort(ranks, std::greater());
    const std::size_t most = list.budget + list.estimated;
    const float least = most < ranks.size() ? ranks[most - 1] : 0;
    const auto best = [&](std::uint32_t budget, const auto& takes_part) {
      std::vector<std::uint32_t> order;
      for (std::uint32_t u = 0; u < list.units; ++u)
        if (seen.rank[u] >= least && takes_part(u)) order.push_back(u);
      std::ranges::stable_sort(order, [&](auto a, auto b) { return seen.rank[a] > seen.rank[b]; });
      std::vector<RowSet> taken(list.units / kBlockRows);
      std::uint32_t rows = 0;
      for (const std::uint32_t u : order) {
        if (rows + rows_of(list, u) > budget) continue;
        rows += rows_of(list, u);
        taken[u / kBlockRows] |= RowSet{1} << u % kBlockRows;
      }
      return taken;
    };
    const auto part = [&](const std::vector<RowSet>& sets) {
      return std::vector<RowSet>(sets.begin(), sets.begin() + list.units / kBlockRows);
    };
    const std::vector<RowSet> taken = best(list.budget, [](std::uint32_t) { return true; });
    EXPECT_EQ(part(seen.taken), taken);
    std::uint32_t read = 0;
    for (std::size_t r = 0; r < list.runs.size(); ++r)
      for (std::uint32_t u = 0; u < list.runs[r].count(); ++u)
        for (std::uint32_t row = list.runs[r].bounds[u]; row < list.runs[r].bounds[u + 1]; ++row) {
          const bool chosen = holds(taken, list.placed[r].first_unit + u);
          ASSERT_EQ(holds(seen.sets, list.placed[r].first_row + row), chosen) << "row " << row;
          read += chosen;
        }
    EXPECT_EQ(seen.read, read);
    std::uint32_t set = 0;
    for (std::uint32_t b = 0; b < list.rows / kBlockRows; ++b)
      set += static_cast<std::uint32_t>(count(seen.sets[b]));
    EXPECT_EQ(set, read);  // and no row beyond a run's end
    if (shape.summary_bytes == 0) {
      EXPECT_EQ(seen.summaries, 0u);
      return;
    }
    const std::vector<RowSet> estimated =
        best(list.estimated, [&](std::uint32_t u) { return !holds(taken, u); });
    EXPECT_EQ(part(seen.estimated), estimated);
    std::uint32_t rank = 0;
    for (std::uint32_t u = 0; u < list.units; ++u)
      for (std::uint32_t h = 0; h < shape.head.heads && holds(estimated, u); ++h) {
        const double due = seen.score[std::size_t{h} * most_units_ + u] +
                           std::log(static_cast<double>(rows_of(list, u)));
        ASSERT_NEAR(seen.log_weight[std::size_t{rank} * shape.head.heads + h], due,
                    1e-6 * std::abs(due) + 1e-6);
        rank += h + 1 == shape.head.heads;
      }
    EXPECT_EQ(seen.summaries, rank);
  }

  std::uint32_t most_units_ = 0;
  std::mt19937 random_{20241207};
};

ChoiceShape shape_of(HeadShape head, UnitFormat unit, bool summaries) {
  ChoiceShape shape;
  shape.head = head;
  shape.bits = 0;
  shape.unit = unit;
  shape.key_bytes = row_bytes(shape.key_format, head.key_dim);
  shape.row_bytes = shape.key_bytes + row_bytes(shape.value_format, head.value_dim);
  shape.summary_bytes = summaries ? row_bytes(shape.summary_format, head.value_dim) : 0;
  return shape;
}

TEST_F(RankedTest, EveryStageMatchesTheOracle) {
  const ChoiceShape shapes[] = {
      shape_of({3, 64, 64}, {UnitScore::bounds, GroupRank::sum, 16}, false),
      shape_of({8, 128, 80}, {UnitScore::bounds, GroupRank::max, 48}, false),
      shape_of({1, 256, 256}, {UnitScore::moments, GroupRank::sum, 16, 2.0f}, false),
      shape_of({4, 32, 16}, {UnitScore::moments, GroupRank::vote, 7, 0.5f}, false),
      shape_of({2, 64, 64}, {UnitScore::landmarks, GroupRank::max, 8}, false),
      shape_of({3, 64, 64}, {UnitScore::means, GroupRank::sum, 0}, true),
      shape_of({4, 96, 32}, {UnitScore::means, GroupRank::vote, 0}, true),
      shape_of({5, 64, 64}, {UnitScore::means, GroupRank::max, 0}, false)};
  for (const ChoiceShape& shape : shapes) {
    SCOPED_TRACE("score " + std::to_string(static_cast<int>(shape.unit.score)) + " heads " +
                 std::to_string(shape.head.heads));
    const bool sums = shape.summary_bytes > 0;
    std::vector<List> lists;
    lists.push_back(list(shape, {700, 64, 1501}, 403, sums ? 500 : 0));
    lists.back().steady_max.assign(shape.head.heads, 1.5f);
    lists.back().steady_sum.assign(shape.head.heads, 20.0f);
    lists.push_back(list(shape, {300}, 1, 0));
    lists.push_back(list(shape, {100, 130}, 230, sums ? 50 : 0));  // all of them
    lists.push_back(list(shape, {8192, 8192, 8000}, 1500, sums ? 6000 : 0));
    const std::vector<Seen> seen = choose_all(&lists, shape);
    for (std::size_t l = 0; l < lists.size(); ++l) {
      SCOPED_TRACE("list " + std::to_string(l));
      expect_scores(lists[l], seen[l], shape);
      expect_ranks(lists[l], seen[l], shape);
      expect_taken(lists[l], seen[l], shape);
    }
  }
}

// All units alike: the lowest are taken, across runs, and what is left goes to one that fits.
TEST_F(RankedTest, EqualRanksGoToTheLowerUnit) {
  const ChoiceShape shape = shape_of({2, 64, 64}, {UnitScore::bounds, GroupRank::sum, 16}, false);
  std::vector<List> lists;
  lists.push_back(list(shape, {164, 1000}, 16 * 12 + 7, 0));
  for (Units& run : lists[0].runs) std::ranges::fill(run.keys, std::byte{});
  const Seen seen = choose_all(&lists, shape)[0];
  expect_taken(lists[0], seen, shape);
  // Ten whole units of the first run and its last one of 4 rows, then one of the second; the 11
  // rows that are left have room for none.
  EXPECT_EQ(seen.taken[0], first_rows(11));
  EXPECT_EQ(seen.taken[1], first_rows(2));
  EXPECT_EQ(seen.read, 164u + 32u);
}

// What a list chooses does not depend on the lists beside it.
TEST_F(RankedTest, BitsDependOnTheListAlone) {
  const ChoiceShape shape = shape_of({3, 64, 64}, {UnitScore::means, GroupRank::sum, 0}, true);
  std::vector<List> among;
  among.push_back(list(shape, {3000}, 50, 100));
  among.push_back(list(shape, {900, 70}, 100, 200));
  std::vector<List> alone = {among[1]};
  const Seen a = choose_all(&alone, shape)[0], b = choose_all(&among, shape)[1];
  const std::uint32_t units = alone[0].units;
  EXPECT_EQ(std::vector(a.rank.begin(), a.rank.begin() + units),
            std::vector(b.rank.begin(), b.rank.begin() + units));
  const std::size_t blocks = alone[0].rows / kBlockRows;
  EXPECT_EQ(std::vector(a.sets.begin(), a.sets.begin() + blocks),
            std::vector(b.sets.begin(), b.sets.begin() + blocks));
  EXPECT_EQ(a.summaries, b.summaries);
}

// A head that scores nothing but what is not a number leaves the choice to the others; and what no
// head can rank is read where there is room for everything, as it is by the host.
TEST_F(RankedTest, AHeadWithoutScoresHasNoSay) {
  for (const UnitScore by :
       {UnitScore::means, UnitScore::bounds, UnitScore::moments, UnitScore::landmarks}) {
    SCOPED_TRACE("score " + std::to_string(static_cast<int>(by)));
    const bool means = by == UnitScore::means;
    const ChoiceShape shape =
        shape_of({2, 64, 64}, {by, GroupRank::sum, means ? 0u : 16u, 1.0f}, means);
    std::vector<List> lists;
    lists.push_back(list(shape, {500}, 100, 200));
    std::fill_n(lists[0].query.begin() + 64, 64, std::numeric_limits<float>::quiet_NaN());
    const Seen seen = choose_all(&lists, shape)[0];
    const Units& run = lists[0].runs[0];
    EXPECT_GT(seen.read, 60u);
    EXPECT_EQ(seen.summaries, 0u);  // that head would have no weight for them
    for (std::uint32_t u = 0; u < run.count(); ++u) {
      const bool first = !run.always.empty() && run.always[u] != std::byte{0};
      EXPECT_EQ(seen.rank[u] >= 0, rows_of(lists[0], u) > 0);
      if (rows_of(lists[0], u) > 0 && !first) {
        EXPECT_TRUE(std::isnan(seen.score[most_units_ + u])) << "unit " << u;
      }
    }
    std::ranges::fill(lists[0].query, std::numeric_limits<float>::quiet_NaN());
    EXPECT_LE(choose_all(&lists, shape)[0].read, 16u);  // what is read first
    lists[0].budget = 500;
    EXPECT_EQ(choose_all(&lists, shape)[0].read, 500u);
  }
}

TEST(CanChoose, UnitsOfAnyHeadThatIsAttended) {
  EXPECT_TRUE(can_choose(shape_of({8, 256, 256}, {UnitScore::bounds, GroupRank::sum, 16}, false)));
  const Status refused =
      can_choose(shape_of({2, 60, 64}, {UnitScore::bounds, GroupRank::sum, 16}, false));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::unsupported);
}

}  // namespace
}  // namespace thermocline::cuda
