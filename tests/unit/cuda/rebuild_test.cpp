// Keys at low rank, rebuilt on the device: each against plain sums in double, rotated by angles in
// double; and what is attended by them.
#include "kernels/cuda/rebuild.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numbers>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/format/row.h"
#include "tests/unit/cuda/on_device.h"
#include "tests/unit/cuda/stream_test.h"

namespace thermocline::cuda {
namespace {

constexpr std::uint32_t kUnitRows = 8;

std::uint32_t whole_blocks(std::uint32_t rows) { return blocks_of(rows) * kBlockRows; }

// One run on the host.
struct Rows {
  std::uint32_t rows = 0, rank = 0, first_position = 0;
  std::vector<f16> basis, along, values, landmarks, kept_key;
  std::vector<std::uint16_t> offset, kept_number;
  std::vector<std::byte> always;
};

struct List {
  std::vector<Rows> runs;
  std::vector<float> query;
  std::uint32_t budget = 0;
};

// What became of one list.
struct Seen {
  std::vector<std::uint32_t> rows;  // read, by rank, counted run after run in whole blocks
  std::vector<float> keys;          // of those
  std::vector<std::uint32_t> of_runs;
  std::vector<float> out;  // [heads][value_dim]
};

// From a double's angle; `step` is in 2^-64 of a turn.
double turns_at(std::uint64_t step, std::uint32_t position) {
  return static_cast<double>(step * position) * 0x1p-64 * 2 * std::numbers::pi;
}

class RebuildTest : public StreamTest {
 protected:
  float normal() { return std::normal_distribution<float>()(random_); }
  std::vector<f16> halves(std::size_t count) {
    std::vector<f16> made(count);
    for (f16& x : made) x = to_f16(normal());
    return made;
  }

  // Every eleventh row's key is kept as it was, if `kept`; rows lie in some other order than their
  // positions', if `ordered`.
  Rows rows(HeadShape head, std::uint32_t count, std::uint32_t rank, bool kept, bool ordered) {
    Rows made;
    made.rows = count;
    made.rank = rank;
    made.first_position = static_cast<std::uint32_t>(random_() % 200000);
    made.basis = halves(std::size_t{rank} * head.key_dim);
    made.along = halves(std::size_t{count} * rank);
    made.values = halves(std::size_t{count} * head.value_dim);
    const std::uint32_t units = (count + kUnitRows - 1) / kUnitRows;
    made.landmarks = halves(std::size_t{units} * head.key_dim);
    made.always.resize(units);
    made.always[units / 2] = std::byte{1};
    for (std::uint32_t r = 5; kept && r < count; r += 11)
      made.kept_number.push_back(static_cast<std::uint16_t>(r));
    made.kept_key = halves(made.kept_number.size() * head.key_dim);
    if (ordered) {
      made.offset.resize(count);
      std::iota(made.offset.begin(), made.offset.end(), std::uint16_t{0});
      std::shuffle(made.offset.begin(), made.offset.end(), random_);
    }
    return made;
  }

  List list(HeadShape head, std::vector<Rows> runs, std::uint32_t budget) {
    List made{std::move(runs), {}, budget};
    for (std::uint32_t i = 0; i < head.heads * head.key_dim; ++i)
      made.query.push_back(normal() / static_cast<float>(head.key_dim));
    return made;
  }

  std::vector<Seen> choose_all(const std::vector<List>& lists, HeadShape head,
                               const Rotation* rotation) {
    ChoiceShape shape;
    shape.head = head;
    shape.bits = 0;
    shape.unit = {UnitScore::landmarks, GroupRank::max, kUnitRows};
    shape.key_format = RowFormat::lowrank;
    shape.row_bytes = row_bytes(shape.value_format, head.value_dim);
    shape.rotation = rotation;
    shape.lists = static_cast<std::uint32_t>(lists.size());
    PutOnDevice there;
    std::vector<ChoiceList> given;
    for (const List& list : lists) {
      ChoiceList one;
      std::vector<ChoiceRun> placed;
      for (const Rows& run : list.runs) {
        ChoiceRun on;
        on.rows = run.rows;
        on.units = static_cast<std::uint32_t>(run.always.size());
        on.first_row = one.rows;
        on.first_unit = one.units;
        on.unit_keys = reinterpret_cast<const std::byte*>(there.put(run.landmarks));
        on.unit_key_bytes = head.key_dim * sizeof(f16);
        on.always = there.put(run.always);
        on.row = reinterpret_cast<const std::byte*>(there.put(run.values));
        on.low_rank = {run.rank,
                       run.first_position,
                       there.put(run.basis),
                       there.put(run.along),
                       run.offset.empty() ? nullptr : there.put(run.offset),
                       static_cast<std::uint32_t>(run.kept_number.size()),
                       there.put(run.kept_number),
                       there.put(run.kept_key)};
        placed.push_back(on);
        one.rows += whole_blocks(on.rows);
        one.units += whole_blocks(on.units);
      }
      one.runs = {there.put(placed), placed.size()};
      one.budget = list.budget;
      one.query = there.put(list.query);
      given.push_back(one);
      shape.most_runs = std::max(shape.most_runs, static_cast<std::uint32_t>(placed.size()));
      shape.most_rows = std::max(shape.most_rows, one.rows);
      shape.most_units = std::max(shape.most_units, one.units);
      shape.most_budget = std::max(shape.most_budget, one.budget);
    }
    const OnDevice<ChoiceList> on_device(given);
    const OnDevice<std::byte> memory(
        std::vector<std::byte>(ChoiceBoard::bytes(shape), std::byte{0xff}));
    const ChoiceBoard board = ChoiceBoard::cut(shape, memory.data());
    expect(choose(*stream_, shape, on_device.span(), board));

    const std::size_t folds = std::size_t{shape.lists} * shape.folds();
    const std::size_t heads = head.heads, dim = head.value_dim;
    const auto states = [&](std::size_t count) {
      States of;
      of.max = there.put(std::vector<float>(count * heads));
      of.sum = there.put(std::vector<float>(count * heads));
      of.acc = there.put(std::vector<float>(count * heads * dim));
      return of;
    };
    const States partial = states(folds), merged = states(lists.size());
    std::vector<std::uint32_t> first;
    for (std::uint32_t l = 0; l <= lists.size(); ++l) first.push_back(l * shape.folds());
    const OnDevice<std::uint32_t> firsts(first);
    expect(attend(*stream_, head, {board.folds, folds}, partial));
    expect(merge(*stream_, head, partial, firsts.span(), merged));
    expect(stream_->wait());

    std::vector<Seen> seen;
    for (std::size_t l = 0; l < lists.size(); ++l) {
      const auto copy = [&](const auto* from, std::size_t of_list, std::size_t count) {
        using T = std::remove_cvref_t<decltype(*from)>;
        return OnDevice<T>::copy_of(from + l * of_list, count);
      };
      const std::uint32_t read = copy(board.read, 1, 1)[0];
      const std::vector<float> sum = copy(merged.sum, heads, heads);
      seen.push_back({copy(board.rebuilt, shape.most_budget, read),
                      copy(board.keys, std::size_t{shape.most_budget} * head.key_dim,
                           std::size_t{read} * head.key_dim),
                      copy(board.of_runs, shape.most_runs, lists[l].runs.size()),
                      copy(merged.acc, heads * dim, heads * dim)});
      for (std::size_t i = 0; i < heads * dim; ++i) seen.back().out[i] /= sum[i / dim];
    }
    return seen;
  }
  static void expect(const Status& status) {
    ASSERT_TRUE(status.has_value()) << status.error().message;
  }

  // Of a run's row: its key, and how far a channel may be from it, pair by pair: by sums in floats,
  // of which tensor cores may drop what is below their last bit, and by angles within 2e-7.
  static void oracle(HeadShape head, const Rows& run, std::uint32_t row, const Rotation* rotation,
                     std::vector<double>* key, std::vector<double>* off) {
    key->assign(head.key_dim, 0);
    off->assign(head.key_dim, 0);
    const auto kept = std::ranges::find(run.kept_number, row);
    if (kept != run.kept_number.end()) {
      const auto at = static_cast<std::size_t>(kept - run.kept_number.begin()) * head.key_dim;
      for (std::uint32_t i = 0; i < head.key_dim; ++i) (*key)[i] = to_float(run.kept_key[at + i]);
      return;
    }
    const std::uint32_t offset = run.offset.empty() ? row : run.offset[row];
    std::vector<double> terms(head.key_dim, 0);
    for (std::uint32_t k = 0; k < run.rank; ++k)
      for (std::uint32_t i = 0; i < head.key_dim; ++i) {
        const double term = double{to_float(run.along[std::size_t{offset} * run.rank + k])} *
                            double{to_float(run.basis[std::size_t{k} * head.key_dim + i])};
        (*key)[i] += term;
        terms[i] += std::abs(term);
      }
    for (std::uint32_t i = 0; i < head.key_dim; ++i)
      (*off)[i] = (run.rank + 1) * 0x1p-23 * terms[i];
    for (std::uint32_t p = 0; rotation != nullptr && p < rotation->pairs; ++p) {
      const bool together = rotation->layout == RopePairs::neighbours;
      const std::uint32_t one = together ? 2 * p : p,
                          other = together ? one + 1 : p + rotation->pairs;
      const double turn = turns_at(rotation->step[p], run.first_position + offset);
      const double by = rotation->magnitude, a = (*key)[one], b = (*key)[other];
      (*key)[one] = by * (a * std::cos(turn) - b * std::sin(turn));
      (*key)[other] = by * (a * std::sin(turn) + b * std::cos(turn));
      const double most = by * (1.0001 * ((*off)[one] + (*off)[other]) +
                                (2e-7 + 4 * 0x1p-24) * (std::abs(a) + std::abs(b)));
      (*off)[one] = (*off)[other] = most;
    }
  }

  void expect_rebuilt(const List& list, const Seen& seen, HeadShape head,
                      const Rotation* rotation) const {
    ASSERT_GT(seen.rows.size(), 0u);
    ASSERT_LE(seen.rows.size(), list.budget);
    ASSERT_TRUE(std::ranges::is_sorted(seen.rows));
    std::vector<std::uint32_t> of_runs(list.runs.size());
    std::vector<const f16*> value;
    for (std::size_t rank = 0; rank < seen.rows.size(); ++rank) {
      std::uint32_t row = seen.rows[rank];
      std::size_t r = 0;
      for (; row >= whole_blocks(list.runs[r].rows); ++r) row -= whole_blocks(list.runs[r].rows);
      ++of_runs[r];
      const Rows& run = list.runs[r];
      value.push_back(run.values.data() + std::size_t{row} * head.value_dim);
      std::vector<double> key, off;
      oracle(head, run, row, rotation, &key, &off);
      for (std::uint32_t i = 0; i < head.key_dim; ++i)
        ASSERT_NEAR(seen.keys[rank * head.key_dim + i], key[i], off[i])
            << "run " << r << " row " << row << " channel " << i;
    }
    EXPECT_EQ(seen.of_runs, of_runs);
    // And they are attended with their values, by the device's own keys.
    for (std::uint32_t h = 0; h < head.heads; ++h) {
      std::vector<double> score, out(head.value_dim, 0);
      double longest = 0, total = 0, largest = 0;
      for (std::size_t rank = 0; rank < seen.rows.size(); ++rank) {
        double sum = 0, terms = 0;
        for (std::uint32_t i = 0; i < head.key_dim; ++i) {
          const double term =
              double{list.query[h * head.key_dim + i]} * double{seen.keys[rank * head.key_dim + i]};
          sum += term;
          terms += std::abs(term);
        }
        score.push_back(sum);
        longest = std::max(longest, terms);
      }
      const double most = *std::ranges::max_element(score);
      for (std::size_t rank = 0; rank < score.size(); ++rank) {
        const double weight = std::exp(score[rank] - most);
        total += weight;
        for (std::uint32_t i = 0; i < head.value_dim; ++i) {
          out[i] += weight * double{to_float(value[rank][i])};
          largest = std::max(largest, std::abs(double{to_float(value[rank][i])}));
        }
      }
      const double u = 0x1p-24, n = static_cast<double>(score.size());
      const double weight_off = 2 * (head.key_dim + 8) * u * longest + 8 * u;
      for (std::uint32_t i = 0; i < head.value_dim; ++i)
        ASSERT_NEAR(seen.out[h * head.value_dim + i], out[i] / total,
                    2 * largest * (2 * weight_off + 2 * (n + 16) * u));
    }
  }

  std::mt19937 random_{20241130};
};

Rotation rotation_of(std::uint32_t pairs, RopePairs layout, float magnitude) {
  std::vector<float> frequency(pairs);
  for (std::uint32_t i = 0; i < pairs; ++i)
    frequency[i] = std::pow(10000.0f, -static_cast<float>(i) / static_cast<float>(pairs));
  return Rotation::of(frequency, layout, magnitude);
}

TEST_F(RebuildTest, KeysAreThoseOfThePlainSums) {
  const struct {
    HeadShape head;
    std::uint32_t ranks[3];
    std::uint32_t pairs;
    RopePairs layout;
    float magnitude;
  } cases[] = {{{3, 64, 64}, {32, 48, 16}, 32, RopePairs::halves, 1.0f},
               {{4, 128, 128}, {160, 64, 176}, 64, RopePairs::neighbours, 1.0f},
               {{8, 128, 80}, {80, 16, 1024}, 48, RopePairs::halves, 1.25f},  // some turn
               {{1, 256, 16}, {128, 144, 64}, 100, RopePairs::neighbours, 0.75f},
               {{2, 16, 32}, {16, 32, 16}, 0, RopePairs::halves, 1.0f},  // without positions
               {{2, 96, 96}, {112, 64, 16}, 48, RopePairs::halves, 1.0f}};
  for (const auto& given : cases) {
    SCOPED_TRACE("key size " + std::to_string(given.head.key_dim));
    const Rotation rotation = rotation_of(given.pairs, given.layout, given.magnitude);
    const Rotation* const of = given.pairs > 0 ? &rotation : nullptr;
    const auto run = [&](std::uint32_t count, int rank, bool kept, bool ordered) {
      return rows(given.head, count, given.ranks[rank], kept, ordered);
    };
    std::vector<List> lists;
    lists.push_back(
        list(given.head,
             {run(700, 0, true, false), run(64, 1, false, true), run(1501, 2, true, true)}, 403));
    lists.push_back(list(given.head, {run(300, 2, false, false)}, 9));
    lists.push_back(list(given.head, {run(100, 1, true, true), run(130, 0, false, false)}, 230));
    const std::vector<Seen> seen = choose_all(lists, given.head, of);
    for (std::size_t l = 0; l < lists.size(); ++l) {
      SCOPED_TRACE("list " + std::to_string(l));
      expect_rebuilt(lists[l], seen[l], given.head, of);
    }
    EXPECT_EQ(seen[2].rows.size(), 230u);  // all of them
  }
}

// Nor on what else is chosen, which has it at another place of a tile.
TEST_F(RebuildTest, BitsDependOnTheRowAlone) {
  const HeadShape head{2, 128, 64};
  const Rotation rotation = rotation_of(64, RopePairs::halves, 1.0f);
  std::vector<List> lists;
  const std::vector<Rows> runs = {rows(head, 500, 48, true, true),
                                  rows(head, 800, 96, false, true)};
  lists.push_back(list(head, runs, 111));
  lists.push_back(list(head, {rows(head, 90, 16, false, false)}, 20));
  lists.push_back({runs, lists[0].query, 900});
  const std::vector<Seen> among = choose_all(lists, head, &rotation);
  const Seen alone = choose_all({lists[0]}, head, &rotation)[0];
  EXPECT_EQ(alone.rows, among[0].rows);
  EXPECT_EQ(alone.keys, among[0].keys);
  EXPECT_EQ(alone.out, among[0].out);
  EXPECT_GT(among[2].rows.size(), 800u);
  for (std::size_t rank = 0; rank < alone.rows.size(); ++rank) {
    const auto found = std::ranges::lower_bound(among[2].rows, alone.rows[rank]);
    ASSERT_TRUE(found != among[2].rows.end() && *found == alone.rows[rank]);
    const auto at = static_cast<std::size_t>(found - among[2].rows.begin());
    ASSERT_EQ(std::memcmp(alone.keys.data() + rank * head.key_dim,
                          among[2].keys.data() + at * head.key_dim, head.key_dim * sizeof(float)),
              0);
  }
}

// What is not a number in one row is its own business.
TEST_F(RebuildTest, ARowThatIsNotFiniteLeavesTheOthers) {
  const HeadShape head{1, 64, 64};
  const Rotation rotation = rotation_of(32, RopePairs::neighbours, 1.0f);
  Rows bad = rows(head, 256, 32, false, false);
  std::fill_n(bad.along.begin() + 100 * 32, 32, f16{0x7e00});
  const List all{{bad}, std::vector<float>(64, 0.0f), 256};
  const Seen seen = choose_all({all}, head, &rotation)[0];
  ASSERT_EQ(seen.rows.size(), 256u);
  for (std::size_t r = 0; r < 256; ++r)
    for (std::size_t i = 0; i < 64; ++i)
      ASSERT_EQ(std::isnan(seen.keys[r * 64 + i]), r == 100) << "row " << r;
}

TEST(CanChoose, KeysAtLowRankThatItRebuilds) {
  ChoiceShape shape;
  shape.head = {4, 128, 128};
  shape.bits = 0;
  shape.unit = {UnitScore::landmarks, GroupRank::max, kUnitRows};
  shape.key_format = RowFormat::lowrank;
  shape.row_bytes = 256;
  EXPECT_TRUE(can_choose(shape));
  Fold fold;
  fold.key_format = RowFormat::lowrank;  // which nobody has rebuilt
  const Status refused = can_attend(shape.head, fold);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::unsupported);
  EXPECT_NE(refused.error().message.find("low rank"), std::string::npos);
  shape.value_format = RowFormat::lowrank;
  EXPECT_FALSE(can_choose(shape));
}

}  // namespace
}  // namespace thermocline::cuda
