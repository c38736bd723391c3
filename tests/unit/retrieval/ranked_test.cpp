// What is read, of scores that are given; and of the scores of `flat`, against the true mass.
#include "retrieval/select/ranked.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "retrieval/index/block_index.h"
#include "retrieval/index/flat.h"
#include "retrieval/rows_read.h"
#include "tests/unit/retrieval/read_list_checks.h"
#include "tests/unit/retrieval/sealed_keys.h"

namespace thermocline {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr float kAlways = std::numeric_limits<float>::infinity();

const CpuTable& table() { return **choose_cpu_table("auto"); }

struct Unit {
  std::uint32_t rows;
  std::vector<float> score;  // of each query head
};

// Scores that a test writes down, the same for all KV heads.
class GivenSegment final : public SegmentIndex {
 public:
  explicit GivenSegment(std::vector<Unit> given) : units(std::move(given)) {}
  std::uint64_t bytes() const override { return 0; }
  std::vector<Unit> units;
};

class GivenIndex final : public KeyIndex {
 public:
  explicit GivenIndex(bool summaries) : summaries_(summaries) {}
  std::string_view name() const override { return "given"; }
  SelectorFacts facts() const override { return {}; }
  Result<Formation> form(const Sealing&, const Workers&) const override { return Formation(); }
  void save(const Formation&, RecordWriter*) const override {}
  Result<Formation> load(HeadShape, std::uint32_t, std::uint32_t, RecordReader*) const override {
    return Formation();
  }
  std::uint64_t index_bytes(HeadShape, std::uint64_t) const override { return 0; }
  std::uint64_t summary_bytes(HeadShape, std::uint64_t rows) const override {
    return summaries_ ? rows : 0;
  }
  bool formed(const SegmentIndex& segment) const override {
    return dynamic_cast<const GivenSegment*>(&segment) != nullptr;
  }
  std::uint32_t units(const SegmentIndex& segment, std::uint32_t) const override {
    return static_cast<std::uint32_t>(given(segment).size());
  }
  std::uint32_t first_row(const SegmentIndex& segment, std::uint32_t,
                          std::uint32_t unit) const override {
    std::uint32_t first = 0;
    for (std::uint32_t u = 0; u < unit; ++u) first += given(segment)[u].rows;
    return first;
  }
  std::uint64_t score(const KeyQuery& query, KeyScratch*, float* score,
                      std::size_t stride) const override {
    for (const SegmentIndex* segment : query.segments)
      for (const Unit& unit : given(*segment)) {
        for (std::size_t h = 0; h < query.shape.heads; ++h) score[h * stride] = unit.score[h];
        ++score;
      }
    return 1000;
  }

 private:
  static const std::vector<Unit>& given(const SegmentIndex& segment) {
    return static_cast<const GivenSegment&>(segment).units;
  }
  bool summaries_;
};

// Runs of units whose scores are given, and what is read of them, as rows counted through all runs.
class Scene {
 public:
  explicit Scene(std::uint32_t heads) : shape_{heads, 16, 16} {
    steady.assign(heads, AttnState{});  // nothing
  }
  void add(std::vector<Unit> units) {
    auto rows = std::make_shared<Segment>();
    for (const Unit& unit : units) rows->rows += unit.rows;
    auto summaries = std::make_shared<Segment>();
    summaries->rows = static_cast<std::uint32_t>(units.size());
    summaries->layout.value_bytes = 20;
    runs.push_back({rows, summaries, nullptr, std::make_shared<GivenSegment>(std::move(units))});
    length += rows->rows;
  }
  // Rows of a unit each, with these scores for the only query head.
  void add_rows(std::vector<float> scores) {
    std::vector<Unit> units;
    for (const float score : scores) units.push_back({1, {score}});
    add(std::move(units));
  }

  const ReadList& choose(const RankedOptions& options, std::uint32_t layer = 0) {
    auto made = RankedSelector::create(std::make_unique<GivenIndex>(true), options, table());
    TL_CHECK(made.has_value());
    const std::vector<float> query(shape_.heads * shape_.key_dim);
    const ListQuery list{0, length, query.data(), steady, steady_rows, runs};
    cost = *(*made)->choose({LayerId{layer}, shape_, {&list, 1}}, Workers(1), {&chosen_, 1});
    check_well_formed(chosen_, runs);
    return chosen_;
  }
  std::vector<std::uint32_t> read(const RankedOptions& options) {
    return rows_of(choose(options), Form::rows);
  }
  std::vector<std::uint32_t> rows_of(const ReadList& list, Form form) const {
    std::vector<std::uint32_t> rows;
    for (const Read& read : list.reads) {
      if (read.form != form) continue;
      std::uint32_t before = 0;
      for (std::uint32_t r = 0; r < read.run; ++r)
        before += (form == Form::rows ? runs[r].rows : runs[r].summaries)->rows;
      if (read.everything) {
        for (std::uint32_t r = 0; r < runs[read.run].rows->rows; ++r) rows.push_back(before + r);
        continue;
      }
      for (std::uint32_t p = read.first; p < read.last; ++p)
        for (std::uint32_t bit = 0; bit < 64; ++bit)
          if (list.picks[p].rows >> bit & 1)
            rows.push_back(before + list.picks[p].block * 64 + bit);
    }
    return rows;
  }

  std::vector<Run> runs;
  std::vector<AttnState> steady;
  std::uint32_t steady_rows = 0, length = 0;
  Chosen cost;

 private:
  HeadShape shape_;
  ReadList chosen_;
};

using Rows = std::vector<std::uint32_t>;

Rows range(std::uint32_t first, std::uint32_t end) {
  Rows rows(end - first);
  std::iota(rows.begin(), rows.end(), first);
  return rows;
}

TEST(Ranked, ReadsAShareOfTheTextAFixedNumberOrTheLeast) {
  Scene scene(1);
  std::vector<float> scores;
  for (int i = 0; i < 400; ++i) scores.push_back(static_cast<float>(i) * 0.01f);
  scene.add_rows(scores);
  scene.steady_rows = 100;
  scene.length = 500;
  EXPECT_EQ(scene.read({.share = 0.3, .min_rows = 1}), range(350, 400));  // 150 less 100
  EXPECT_EQ(scene.read({.share = 0.1, .min_rows = 7}), range(393, 400));
  EXPECT_EQ(scene.read({.share = 0.3, .rows = 120, .min_rows = 1}), range(380, 400));
  EXPECT_EQ(scene.read({.rows = 50, .min_rows = 3}), range(397, 400));
  EXPECT_EQ(scene.cost.index_bytes, 1000u);
}

TEST(Ranked, ReadsEverythingBelowTheBudgetAndInDenseLayers) {
  Scene scene(1);
  scene.add_rows(std::vector<float>(90, 1.0f));
  scene.add_rows(std::vector<float>(10, 2.0f));
  const auto everything = [&](const RankedOptions& options, std::uint32_t layer) {
    const ReadList& list = scene.choose(options, layer);
    const bool all = list.reads.size() == 2 && list.reads[0].everything && list.reads[1].everything;
    EXPECT_EQ(scene.cost.index_bytes, all ? 0u : 1000u);
    EXPECT_EQ(list.picks.empty(), all);
    return all;
  };
  EXPECT_TRUE(everything({.min_rows = 100}, 0));
  EXPECT_FALSE(everything({.min_rows = 99}, 0));
  EXPECT_TRUE(everything({.share = 1.0, .min_rows = 1}, 0));
  EXPECT_TRUE(everything({.min_rows = 1, .dense_layers = 3}, 2));
  EXPECT_FALSE(everything({.min_rows = 1, .dense_layers = 3}, 3));
}

TEST(Ranked, EqualScoresGoToTheLowerRow) {
  Scene scene(1);
  scene.add_rows(std::vector<float>(70, 1.0f));
  scene.add_rows(std::vector<float>(70, 1.0f));
  EXPECT_EQ(scene.read({.rows = 100, .min_rows = 1}), range(0, 100));
  // And so where scores are too far below the best one's to weigh anything.
  std::vector<float> far(200, -500.0f);
  far[150] = 0.0f;
  scene = Scene(1);
  scene.add_rows(far);
  Rows expected = range(0, 9);
  expected.push_back(150);
  EXPECT_EQ(scene.read({.rows = 10, .min_rows = 1}), expected);
}

TEST(Ranked, TakesUnitsWholeAndPassesOverWhatNoLongerFits) {
  Scene scene(1);
  scene.add({{50, {5.0f}}, {16, {1.0f}}, {16, {3.0f}}, {0, {9.0f}}, {16, {2.0f}}, {6, {0.5f}}});
  Rows expected = range(66, 82);  // 16 of score 3, then of 2; 16 more do not fit, 6 do
  for (const auto& more : {range(82, 98), range(98, 104)})
    expected.insert(expected.end(), more.begin(), more.end());
  EXPECT_EQ(scene.read({.rows = 40, .min_rows = 1}), expected);
  EXPECT_EQ(scene.read({.rows = 50, .min_rows = 1}), range(0, 50));
}

TEST(Ranked, RanksARowNotItsUnit) {
  Scene scene(1);
  scene.add({{64, {1.0f}}, {2, {1.1f}}});
  EXPECT_EQ(scene.read({.rows = 64, .min_rows = 1}), range(64, 66));
}

TEST(Ranked, WhatIsAlwaysReadComesFirstAndWhatWasNotLookedAtNever) {
  Scene scene(2);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  scene.add({{1, {90.0f, 1.0f}},
             {1, {kNone, kNone}},
             {1, {kNone, kAlways}},
             {1, {nan, nan}},
             {1, {kNone, 1.0f}},
             {1, {kAlways, kAlways}},
             {1, {0.0f, 0.0f}}});
  EXPECT_EQ(scene.read({.rows = 1, .min_rows = 1}), Rows{2});
  EXPECT_EQ(scene.read({.rows = 2, .min_rows = 1}), (Rows{2, 5}));
  EXPECT_EQ(scene.read({.rows = 3, .min_rows = 1}), (Rows{0, 2, 5}));
  EXPECT_EQ(scene.read({.rows = 6, .min_rows = 1}), (Rows{0, 2, 4, 5, 6}));
  // Not even where nothing else is there.
  scene = Scene(1);
  scene.add_rows({kNone, nan, kNone});
  EXPECT_TRUE(scene.read({.rows = 2, .min_rows = 1}).empty());
}

// Two query heads: the first likes row 0 best, and may look at sinks and tail instead.
TEST(Ranked, CombinesTheHeadsOfAGroupAsAsked) {
  Scene scene(2);
  const auto log = [](double x) { return static_cast<float>(std::log(x)); };
  scene.add({{1, {log(0.8), log(0.1)}}, {1, {log(0.1), log(0.5)}}, {1, {log(0.1), log(0.4)}}});
  const auto best = [&](std::uint32_t group, std::uint32_t rows) {
    return scene.read({.rows = rows, .min_rows = 1, .group = group});
  };
  // Without sinks and tail: sums 0.9, 0.6, 0.5; most 0.8, 0.5, 0.4.
  for (const std::uint32_t group : {kGroupSum, kGroupMax, kGroupVote})
    EXPECT_EQ(best(group, 1), Rows{0});
  // A first head that looks elsewhere: sums 0.108, 0.501, 0.401; most 0.1, 0.5, 0.4; votes as
  // above.
  scene.steady[0] = {0.0f, 99.0f, nullptr};
  EXPECT_EQ(best(kGroupSum, 1), Rows{1});
  EXPECT_EQ(best(kGroupMax, 1), Rows{1});
  EXPECT_EQ(best(kGroupVote, 1), Rows{0});
  // Two heads' shares: sums 0.62, 0.8, 0.58; most 0.62, 0.45, 0.55.
  scene = Scene(2);
  scene.add({{1, {log(0.62), kNone}}, {1, {log(0.35), log(0.45)}}, {1, {log(0.03), log(0.55)}}});
  EXPECT_EQ(best(kGroupSum, 1), Rows{1});
  EXPECT_EQ(best(kGroupMax, 1), Rows{0});
  EXPECT_EQ(best(kGroupMax, 2), (Rows{0, 2}));
}

TEST(Ranked, ReadsUntilEachHeadHasItsMass) {
  const auto log = [](double x) { return static_cast<float>(std::log(x)); };
  Scene scene(2);
  // The first head has half of its attention in two rows, the second a tenth in each of ten.
  std::vector<Unit> units = {{1, {log(0.5), log(0.1)}}, {1, {log(0.3), log(0.1)}}};
  for (int i = 0; i < 8; ++i) units.push_back({1, {log(0.2 / 8), log(0.1)}});
  scene.add(units);
  RankedOptions options{.rows = 9, .min_rows = 1};
  options.mass = 0.45;
  EXPECT_EQ(scene.read(options), range(0, 5));
  options.mass = 0.05;
  EXPECT_EQ(scene.read(options), range(0, 1));
  options.min_rows = 3;
  EXPECT_EQ(scene.read(options), range(0, 3));
  options.min_rows = 1;
  options.mass = 1.0;  // the budget is the end
  EXPECT_EQ(scene.read(options), range(0, 9));
  // What lies in sinks and tail counts: three quarters of each head's, here.
  scene.steady.assign(2, AttnState{0.0f, 3.0f, nullptr});
  options.mass = 0.75 + 0.25 * 0.25;
  EXPECT_EQ(scene.read(options), range(0, 3));
  options.mass = 0.7;
  EXPECT_TRUE(scene.read({.rows = 9, .min_rows = 1, .mass = 0.7}).size() == 1);  // the least
  // A unit of n rows counts n times.
  scene = Scene(1);
  scene.add({{8, {0.0f}}, {4, {-0.1f}}, {4, {-0.2f}}});
  EXPECT_EQ(scene.read({.rows = 15, .min_rows = 1, .mass = 0.5}), range(0, 8));
  EXPECT_EQ(scene.read({.rows = 15, .min_rows = 1, .mass = 0.7}), range(0, 12));
}

TEST(Ranked, EstimatesTheNextBestAndSkipsTheRest) {
  Scene scene(2);
  // Scores of the heads differ by 1: what is estimated carries each head's own.
  const auto unit = [](std::uint32_t rows, float score) {
    return Unit{rows, {score, score - 1.0f}};
  };
  scene.add({unit(20, 1.0f), unit(10, 4.0f), unit(0, 9.0f), unit(10, 3.0f)});
  scene.add({unit(30, 2.5f), unit(10, 5.0f), unit(20, 2.0f)});
  // 100 rows: 20 are read, 40 estimated.
  const ReadList& list = scene.choose({.rows = 20, .min_rows = 1, .estimate = 0.4});
  Rows read = range(20, 30);
  for (const std::uint32_t row : range(70, 80)) read.push_back(row);
  EXPECT_EQ(scene.rows_of(list, Form::rows), read);
  EXPECT_EQ(scene.rows_of(list, Form::summaries), (Rows{3, 4}));
  ASSERT_EQ(list.log_weight.size(), 4u);
  EXPECT_FLOAT_EQ(list.log_weight[0], 3.0f + std::log(10.0f));
  EXPECT_FLOAT_EQ(list.log_weight[1], 2.0f + std::log(10.0f));
  EXPECT_FLOAT_EQ(list.log_weight[2], 2.5f + std::log(30.0f));
  EXPECT_FLOAT_EQ(list.log_weight[3], 1.5f + std::log(30.0f));
  EXPECT_TRUE(list.reads.back().scored && list.reads.back().weights_a_row == 2);
  EXPECT_EQ(scene.cost.index_bytes, 1000u + 2 * 20);
  // A summary needs a score of every head.
  Scene unsure(2);
  unsure.add({{5, {5.0f, 5.0f}},
              {5, {4.0f, std::nanf("")}},
              {5, {kNone, 4.0f}},
              {5, {1.0f, 1.0f}},
              {5, {kAlways, 1.0f}}});
  const ReadList& third = unsure.choose({.rows = 5, .min_rows = 1, .estimate = 0.4});
  EXPECT_EQ(unsure.rows_of(third, Form::rows), range(20, 25));
  EXPECT_EQ(unsure.rows_of(third, Form::summaries), (Rows{0, 3}));
  // A cluster that is too large to be read is the first to be estimated.
  const ReadList& other = scene.choose({.rows = 9, .min_rows = 1, .estimate = 0.1});
  EXPECT_TRUE(scene.rows_of(other, Form::rows).empty());
  EXPECT_EQ(scene.rows_of(other, Form::summaries), Rows{5});
  EXPECT_TRUE(scene.rows_of(scene.choose({.rows = 20, .min_rows = 1}), Form::summaries).empty());
}

TEST(Ranked, ReadsRunsOfOtherMethodsWhole) {
  Scene scene(1);
  scene.add_rows({1.0f, 3.0f, 2.0f});
  scene.add_rows({1.0f, 1.0f});
  scene.runs[1].index = nullptr;
  scene.add_rows({4.0f, 0.0f});
  EXPECT_EQ(scene.read({.rows = 2, .min_rows = 1}), (Rows{1, 3, 4, 5}));
}

TEST(RankedOptions, AreChecked) {
  const auto made = [](const RankedOptions& options, bool summaries) {
    return RankedSelector::create(std::make_unique<GivenIndex>(summaries), options, table());
  };
  EXPECT_TRUE(made({}, false));
  EXPECT_TRUE(made({.estimate = 0.2}, true));
  const auto without = made({.estimate = 0.2}, false);
  ASSERT_FALSE(without);
  EXPECT_EQ(without.error().code, ErrorCode::invalid_argument);
  EXPECT_NE(without.error().message.find("given: estimate = 0.2"), std::string::npos);
  for (const Parameter<RankedOptions>& parameter : RankedSelector::parameters()) {
    SCOPED_TRACE(parameter.name);
    const auto with = [&](double value) {
      RankedOptions options;
      std::visit(
          [&](auto member) {
            options.*member = static_cast<std::decay_t<decltype(options.*member)>>(value);
          },
          parameter.member);
      return options;
    };
    EXPECT_TRUE(made(with(parameter.least), true));
    EXPECT_TRUE(made(with(parameter.most), true));
    EXPECT_FALSE(made(with(parameter.most + 1), true));
    if (!parameter.words.empty()) {
      EXPECT_EQ(parameter.words.size(), parameter.most + 1);
    }
  }
}

// Keys of real structure and the index that sees them all.
struct FlatScene {
  HeadShape shape;
  SealedRuns sealed;
  std::vector<float> query;
  std::vector<AttnState> steady;
  std::uint32_t length = 20;

  FlatScene(const Selector& selector, HeadShape s, std::vector<std::uint32_t> runs, unsigned seed)
      : shape(s) {
    const std::uint32_t rows = std::accumulate(runs.begin(), runs.end(), 0u);
    length += rows;
    const SyntheticRows synthetic(shape, 2, rows, rows / 24 + 1, seed);
    std::uint32_t first = 0;
    for (const std::uint32_t n : runs) {
      const Sealing sealing = synthetic.sealing(first, n);
      sealed.add(sealing, *selector.form(sealing, Workers(2)));
      first += n;
    }
    std::mt19937 random(seed + 100);
    std::normal_distribution<float> normal(0.0f, 0.25f);
    for (std::size_t i = 0; i < 2 * std::size_t{shape.heads} * shape.key_dim; ++i)
      query.push_back(normal(random));
    steady.assign(shape.heads, AttnState{1.0f, 2.0f, nullptr});
  }
  std::vector<ListQuery> lists() const {
    std::vector<ListQuery> out;
    for (std::uint32_t h = 0; h < 2; ++h)
      out.push_back({h, length, &query[std::size_t{h} * shape.heads * shape.key_dim], steady, 20,
                     sealed.runs()});
    return out;
  }
  std::vector<ReadList> choose(Selector* selector, const Workers& workers) const {
    std::vector<ReadList> out(2);
    TL_CHECK(selector->choose({{}, shape, lists()}, workers, out).has_value());
    return out;
  }
};

std::unique_ptr<RankedSelector> flat(const RankedOptions& options) {
  auto index =
      std::make_unique<BlockIndex>(std::make_unique<FlatCode>(FlatCode::Options(), table()));
  return std::move(*RankedSelector::create(std::move(index), options, table()));
}

// No unread row has more of the group's true mass than a read one.
TEST(Ranked, OfFlatIsTheTrueMass) {
  for (const std::uint32_t group : {kGroupSum, kGroupMax, kGroupVote})
    for (const std::uint32_t dim : {64u, 96u}) {
      const auto selector = flat({.share = 0.05, .min_rows = 1, .group = group});
      const FlatScene scene(*selector, {3, dim, 32}, {1500, 70, 333}, dim + group);
      const auto chosen = scene.choose(selector.get(), Workers(2));
      for (std::uint32_t head = 0; head < 2; ++head) {
        const ListQuery query = scene.lists()[head];
        std::vector<double> rank;
        for (std::uint32_t h = 0; h < 3; ++h) {
          std::vector<double> mass;
          for (const RunKeys& run : scene.sealed.keys(head))
            for (std::uint32_t r = 0; r < run.rows; ++r) {
              const f16* key =
                  reinterpret_cast<const f16*>(run.data + std::size_t{r} * run.layout.bytes());
              double score = 0;
              for (std::uint32_t d = 0; d < dim; ++d)
                score += double{query.query[h * dim + d]} * to_float(key[d]);
              mass.push_back(std::exp(score));
            }
          double all = std::accumulate(mass.begin(), mass.end(), 0.0);
          if (group != kGroupVote) all += 2.0 * std::exp(1.0);
          rank.resize(mass.size());
          for (std::size_t r = 0; r < mass.size(); ++r)
            rank[r] =
                group == kGroupMax ? std::max(rank[r], mass[r] / all) : rank[r] + mass[r] / all;
        }
        std::vector<bool> read(rank.size());
        std::size_t taken = 0;
        const std::uint32_t before[] = {0, 1500, 1570};
        for (const Read& r : chosen[head].reads)
          for (std::uint32_t p = r.first; p < r.last; ++p)
            for (RowSet left = chosen[head].picks[p].rows; left != 0; left &= left - 1, ++taken)
              read[before[r.run] + chosen[head].picks[p].block * 64 +
                   static_cast<std::uint32_t>(std::countr_zero(left))] = true;
        EXPECT_EQ(taken, static_cast<std::size_t>(0.05 * scene.length) - 20);
        double least_read = kAlways, most_unread = 0;
        for (std::size_t r = 0; r < rank.size(); ++r)
          if (read[r])
            least_read = std::min(least_read, rank[r]);
          else
            most_unread = std::max(most_unread, rank[r]);
        EXPECT_GT(least_read, most_unread * (1 - 1e-3));
      }
    }
}

TEST(Ranked, IsTheSameOnAnyNumberOfThreadsAndInABatch) {
  const auto selector = flat({.share = 0.05}), other = flat({.share = 0.05});
  const FlatScene scene(*selector, {3, 64, 64}, {3000, 700}, 3);
  const auto alone = scene.choose(selector.get(), Workers(1));
  for (const int threads : {1, 2, 5}) {
    std::vector<ListQuery> four = scene.lists();
    for (const ListQuery& list : scene.lists()) four.push_back(list);
    std::vector<ReadList> out(4);
    ASSERT_TRUE(other->choose({{}, scene.shape, four}, Workers(threads), out));
    for (std::uint32_t l = 0; l < 4; ++l) EXPECT_TRUE(same_reads(out[l], alone[l % 2]));
  }
  EXPECT_FALSE(same_reads(alone[0], alone[1]));
}

}  // namespace
}  // namespace thermocline
