#include "retrieval/select/sketch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "retrieval/index/sketch_index.h"
#include "retrieval/rows_read.h"
#include "retrieval/select/everything.h"
#include "retrieval/select/nothing.h"
#include "tests/support/allocations.h"
#include "tests/unit/retrieval/read_list_checks.h"
#include "tests/unit/retrieval/sealed_keys.h"

namespace thermocline {
namespace {

const CpuTable& table() { return **choose_cpu_table("auto"); }

std::unique_ptr<SketchSelector> sketch(const SketchOptions& options = {}) {
  auto made = SketchSelector::create(options, table());
  TL_CHECK(made.has_value());
  return std::move(*made);
}

// One sequence: some runs, a query for each KV head, steady states.
struct Scene {
  static constexpr std::uint32_t kSteadyRows = 20;
  HeadShape shape;
  std::uint32_t heads, length;
  SealedRuns sealed;
  std::vector<float> query;
  std::vector<std::vector<AttnState>> steady;

  Scene(const Selector& selector, HeadShape s, std::uint32_t kv_heads,
        std::vector<std::uint32_t> runs, const Workers& workers, unsigned seed = 1)
      : shape(s), heads(kv_heads) {
    const std::uint32_t rows = std::accumulate(runs.begin(), runs.end(), 0u);
    length = rows + kSteadyRows;
    SyntheticRows synthetic(shape, heads, rows, rows / 24 + 1, seed);
    std::uint32_t first = 0;
    for (const std::uint32_t n : runs) {
      const Sealing sealing = synthetic.sealing(first, n);
      sealed.add(sealing, *selector.form(sealing, workers));
      first += n;
    }
    std::mt19937 random(seed + 100);
    std::normal_distribution<float> normal(0.0f, 0.25f);
    for (std::size_t i = 0; i < std::size_t{heads} * shape.heads * shape.key_dim; ++i)
      query.push_back(normal(random));
    steady.assign(heads, std::vector<AttnState>(shape.heads, AttnState{1.0f, 2.0f, nullptr}));
  }
  std::vector<ListQuery> lists() const {
    std::vector<ListQuery> out;
    for (std::uint32_t h = 0; h < heads; ++h)
      out.push_back({h, length, &query[std::size_t{h} * shape.heads * shape.key_dim], steady[h],
                     kSteadyRows, sealed.runs()});
    return out;
  }
  std::vector<ReadList> choose(Selector* selector, const Workers& workers,
                               Chosen* chosen = nullptr) const {
    std::vector<ReadList> out(heads);
    const Chosen cost = *selector->choose({{}, shape, lists()}, workers, out);
    if (chosen) *chosen = cost;
    return out;
  }
};

TEST(SketchForm, OrdersRowsByClusterAndAveragesThem) {
  const HeadShape shape{3, 48, 32};
  for (const std::uint32_t rows : {1u, 16u, 17u, 777u}) {
    SyntheticRows synthetic(shape, 2, rows, 9, 3);
    const Sealing sealing = synthetic.sealing();
    const auto selector = sketch();
    const Formation formed = *selector->form(sealing, Workers(2));
    const auto index = std::static_pointer_cast<const SketchIndex>(formed.index);
    const std::uint32_t clusters = (rows + 15) / 16;
    ASSERT_EQ(index->clusters(), clusters);
    ASSERT_EQ(formed.summaries, clusters + index->groups());
    ASSERT_EQ(index->groups(), rows == 777 ? 7u : rows == 1 ? 0u : 1u);
    const std::size_t record = formed.summary_layout.bytes();
    ASSERT_EQ(formed.summary_rows.size(), 2 * formed.summaries * record);
    ASSERT_EQ(formed.summary_rows.size(), 2 * selector->summary_bytes(shape, rows));
    ASSERT_EQ(formed.order.size(), 2u * rows);
    for (std::uint32_t h = 0; h < 2; ++h) {
      const std::span<const std::uint32_t> order(&formed.order[std::size_t{h} * rows], rows);
      std::vector<std::uint32_t> all(order.begin(), order.end());
      std::sort(all.begin(), all.end());
      for (std::uint32_t r = 0; r < rows; ++r) ASSERT_EQ(all[r], r);
      const auto starts = index->starts(h);
      ASSERT_EQ(starts.front(), 0);
      ASSERT_EQ(starts.back(), rows);
      const auto groups = index->group_starts(h);
      ASSERT_EQ(groups.front(), 0);
      ASSERT_EQ(groups.back(), index->groups() > 0 ? clusters : 0);
      for (std::uint32_t c = 0; c < formed.summaries; ++c) {
        std::uint32_t begin = starts[std::min(c, clusters)], end = begin;
        if (c < clusters) {
          end = starts[c + 1];
          ASSERT_LE(begin, end);
          for (std::uint32_t i = begin; i + 1 < end; ++i)
            EXPECT_LT(order[i], order[i + 1]) << "by position inside a cluster";
        } else {
          ASSERT_LE(groups[c - clusters], groups[c - clusters + 1]);
          begin = starts[groups[c - clusters]];
          end = starts[groups[c - clusters + 1]];
        }
        if (begin == end) continue;
        const std::byte* kept =
            formed.summary_rows.data() + (std::size_t{h} * formed.summaries + c) * record;
        const auto expect_mean = [&](RowFormat format, auto side, std::uint32_t dim,
                                     const std::byte* row) {
          std::vector<float> got(dim);
          read_row(format, row, dim, got.data());
          std::vector<double> mean(dim);
          double largest = 0;
          for (std::uint32_t d = 0; d < dim; ++d) {
            for (std::uint32_t i = begin; i < end; ++i)
              mean[d] += to_float(side(order[i])[d]) / (end - begin);
            largest = std::max(largest, std::abs(mean[d]));
          }
          if (format == RowFormat::int8) {
            // Half a step, which is an f16, and the mean's own rounding to f16.
            const double bound = (0.5 / 127 * (1 + 0x1p-10) + 0x1p-11) * largest + 1e-5;
            for (std::uint32_t d = 0; d < dim; ++d) EXPECT_NEAR(got[d], mean[d], bound);
            return;
          }
          double error = 0, energy = 0;
          for (std::uint32_t d = 0; d < dim; ++d) {
            error += (got[d] - mean[d]) * (got[d] - mean[d]);
            energy += mean[d] * mean[d];
          }
          EXPECT_LT(error, 0.03 * energy) << "four bits leave a hundredth, or little more";
        };
        expect_mean(
            SketchIndex::kMeanFormat, [&](std::uint32_t r) { return sealing.rows.key(h, r); },
            shape.key_dim, index->means(h) + c * index->mean_bytes());
        expect_mean(
            formed.summary_layout.value_format,
            [&](std::uint32_t r) { return sealing.rows.value(h, r); }, shape.value_dim, kept);
      }
    }
  }
}

TEST(SketchForm, SaysWhatItTakes) {
  const HeadShape shape{3, 64, 64};
  for (const std::uint32_t bits : {1u, 2u, 4u, 16u}) {
    const bool coded = bits == 2 || bits == 4;
    const auto of_bits = sketch(
        {.cluster = 24, .bits = bits, .coded = coded ? 0.1 : 0.0, .value_bits = coded ? bits : 2});
    for (const std::uint32_t rows : {1u, 100u, 1024u, 5001u}) {
      SyntheticRows synthetic(shape, 3, rows, 9, 3);
      const Formation formed = *of_bits->form(synthetic.sealing(), Workers(2));
      EXPECT_EQ(formed.index->bytes(), 3 * of_bits->index_bytes(shape, rows));
      EXPECT_EQ(formed.summary_rows.size(), 3 * of_bits->summary_bytes(shape, rows));
      EXPECT_EQ(formed.code_rows.size(), 3 * of_bits->code_bytes(shape, rows));
      EXPECT_EQ(formed.code_rows.size(), coded ? 3 * rows * (8 * bits + 2) : 0);
    }
  }
  const auto selector = sketch({.cluster = 24});
  EXPECT_EQ(selector->index_bytes(shape, 2 * kSegmentRows + 5),
            2 * selector->index_bytes(shape, kSegmentRows) + selector->index_bytes(shape, 5));
  EXPECT_EQ(selector->index_bytes(shape, 0), 0u);
  EXPECT_EQ(selector->summary_bytes(shape, 0), 0u);
}

TEST(SketchForm, IsTheSameOnAnyNumberOfThreads) {
  const HeadShape shape{3, 64, 64};
  SyntheticRows synthetic(shape, 2, 2500, 70, 3);
  for (const std::uint32_t bits : {2u, 16u}) {
    const auto selector = sketch({.bits = bits});
    const Formation a = *selector->form(synthetic.sealing(), Workers(1));
    const Formation b = *selector->form(synthetic.sealing(), Workers(2));
    EXPECT_EQ(a.order, b.order);
    EXPECT_EQ(a.summary_rows, b.summary_rows);
    const auto codes = [](const Formation& f) {
      const auto index = std::static_pointer_cast<const SketchIndex>(f.index);
      return std::vector<std::byte>(index->whole().begin(), index->whole().end());
    };
    EXPECT_EQ(codes(a), codes(b));
  }
}

// So that a method of either differs from one of the other by what ranks its rows alone.
TEST(SketchForm, KeepsKeysInPlaceOfCodesAndAllElseAsWithTwoBits) {
  const HeadShape shape{3, 48, 32};
  SyntheticRows synthetic(shape, 2, 777, 9, 3);
  const Sealing sealing = synthetic.sealing();
  const Formation coded = *sketch()->form(sealing, Workers(2));
  const Formation kept = *sketch({.bits = 16})->form(sealing, Workers(2));
  EXPECT_EQ(kept.order, coded.order);
  EXPECT_EQ(kept.summary_rows, coded.summary_rows);
  const auto codes = std::static_pointer_cast<const SketchIndex>(coded.index);
  const auto keys = std::static_pointer_cast<const SketchIndex>(kept.index);
  const auto from_scales_on = [](const SketchIndex& index, std::uint32_t head) {
    const auto starts = index.group_starts(head);
    return std::vector<std::byte>(
        reinterpret_cast<const std::byte*>(index.scales(head)),
        reinterpret_cast<const std::byte*>(starts.data() + starts.size()));
  };
  constexpr std::size_t kKeyBytes = 48 * sizeof(f16);
  for (std::uint32_t h = 0; h < 2; ++h) {
    for (std::uint32_t r = 0; r < 777; ++r) {
      const f16* key = sealing.rows.key(h, kept.order[h * 777 + r]);
      EXPECT_EQ(std::memcmp(keys->keys(h) + r * kKeyBytes, key, kKeyBytes), 0) << r;
    }
    EXPECT_EQ(from_scales_on(*keys, h), from_scales_on(*codes, h));
  }
}

TEST(SketchForm, RefusesWhatItCannotCode) {
  const HeadShape shape{1, 40, 40};
  SyntheticRows synthetic(shape, 1, 20, 2, 3);
  const auto formed = sketch()->form(synthetic.sealing(), Workers(1));
  ASSERT_FALSE(formed.has_value());
  EXPECT_EQ(formed.error().code, ErrorCode::unsupported);
}

TEST(SketchForm, TakesHostileKeys) {
  const HeadShape shape{2, 32, 32};
  SyntheticRows synthetic(shape, 1, 300, 5, 3);
  for (std::uint32_t d = 0; d < 32; ++d) {
    synthetic.key(0, 7)[d] = {0x7e00};  // NaN
    synthetic.key(0, 8)[d] = {0x7c00};  // infinity
    synthetic.key(0, 9)[d] = to_f16(65504.0f);
    for (std::uint32_t r = 20; r < 200; ++r) synthetic.key(0, r)[d] = to_f16(1.0f);  // all equal
  }
  for (const std::uint32_t bits : {2u, 16u}) {
    const auto selector = sketch({.min_rows = 10, .bits = bits});
    const Sealing sealing = synthetic.sealing();
    SealedRuns sealed;
    sealed.add(sealing, *selector->form(sealing, Workers(2)));
    const std::vector<float> query(64, 0.1f);
    const ListQuery list{0, 300, query.data(), {}, 0, sealed.runs()};
    std::vector<ReadList> out(1);
    selector->choose({{}, shape, {&list, 1}}, Workers(2), out);
    check_well_formed(out[0], sealed.runs());
  }
}

TEST(SketchOptions, AreChecked) {
  const auto refused = [](const SketchOptions& o) {
    const auto made = SketchSelector::create(o, table());
    return !made.has_value() && made.error().code == ErrorCode::invalid_argument;
  };
  EXPECT_FALSE(refused({}));
  EXPECT_TRUE(refused({.share = std::numeric_limits<double>::quiet_NaN()}));
  for (const Parameter<SketchOptions>& parameter : SketchSelector::parameters()) {
    SCOPED_TRACE(parameter.name);
    const auto with = [&](double value) {
      SketchOptions options;
      std::visit(
          [&](auto member) {
            options.*member = static_cast<std::decay_t<decltype(options.*member)>>(value);
          },
          parameter.member);
      return options;
    };
    EXPECT_FALSE(refused(with(parameter.least)));
    EXPECT_FALSE(refused(with(parameter.most)));
    if (parameter.least > 0) {
      EXPECT_TRUE(refused(with(parameter.least - 1)));
    }
    EXPECT_TRUE(refused(with(parameter.most + 1)));
  }
  for (const std::uint32_t bits : {3u, 5u, 8u, 15u}) EXPECT_TRUE(refused({.bits = bits})) << bits;
  const auto with_codes = SketchSelector::create({.bits = 16, .coded = 0.1}, table());
  ASSERT_FALSE(with_codes.has_value());
  EXPECT_EQ(with_codes.error().code, ErrorCode::unsupported);
}

TEST(SketchOptions, SayWhatAMethodMayAskOfTheSelector) {
  for (const std::uint32_t bits : {1u, 2u, 4u, 16u}) {
    const auto selector = sketch({.bits = bits});
    EXPECT_EQ(selector->facts().keys_in_memory, bits == 16);
    EXPECT_EQ(selector->device_rule() == nullptr, bits == 16) << "no device chooses by keys";
  }
}

// The mean key of a cluster, as the index has it.
void read_mean(const Run& run, std::uint32_t head, std::uint32_t cluster, std::vector<float>* key) {
  const auto index = std::static_pointer_cast<const SketchIndex>(run.index);
  read_row(SketchIndex::kMeanFormat, index->means(head) + cluster * index->mean_bytes(),
           static_cast<std::uint32_t>(key->size()), key->data());
}

// For each run and cluster: how many rows its summary stands for, as its scores say, which must be
// those of the mean key, whatever the query head. 0: it is not read.
std::vector<std::vector<double>> estimated_rows(const Scene& scene, std::uint32_t head,
                                                const ReadList& list) {
  const HeadShape shape = scene.shape;
  const ListQuery query = scene.lists()[head];
  std::vector<std::vector<double>> estimated;
  for (const Run& run : scene.sealed.runs()) estimated.emplace_back(run.summaries->rows);
  std::vector<float> key(shape.key_dim);
  for (const Read& read : list.reads) {
    if (read.form != Form::summaries) continue;
    EXPECT_TRUE(read.scored);
    EXPECT_EQ(read.weights_a_row, shape.heads);
    const float* score = &list.log_weight[read.first_weight];
    for (std::uint32_t p = read.first; p < read.last; ++p)
      for (RowSet left = list.picks[p].rows; left != 0; left &= left - 1, score += shape.heads) {
        const std::uint32_t c =
            list.picks[p].block * 64 + static_cast<std::uint32_t>(std::countr_zero(left));
        read_mean(scene.sealed.runs()[read.run], head, c, &key);
        for (std::uint32_t h = 0; h < shape.heads; ++h) {
          double dot = 0;
          for (std::uint32_t d = 0; d < shape.key_dim; ++d)
            dot += double{query.query[h * shape.key_dim + d]} * key[d];
          const double rows = std::exp(score[h] - dot);
          if (h == 0)
            estimated[read.run][c] = rows;
          else
            EXPECT_NEAR(rows, estimated[read.run][c], 1e-3 * rows);
        }
      }
  }
  return estimated;
}

// The share of attention that lies in unread rows of clusters without an estimate, as means see it,
// for the query head that misses most.
double left_out_mass(const Scene& scene, std::uint32_t head, const ReadList& list) {
  const auto estimated = estimated_rows(scene, head, list);
  std::vector<std::vector<RowSet>> sets;
  for (const Run& run : scene.sealed.runs()) sets.emplace_back(run.rows->blocks());
  for (const Read& read : list.reads)
    for (std::uint32_t p = read.first; p < read.last && read.form == Form::rows; ++p)
      sets[read.run][list.picks[p].block] = list.picks[p].rows;
  const HeadShape shape = scene.shape;
  const ListQuery query = scene.lists()[head];
  double most = 0;
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    double all = query.steady[h].sum * std::exp(query.steady[h].max), missing = 0;
    for (std::size_t r = 0; r < estimated.size(); ++r) {
      const Run& run = scene.sealed.runs()[r];
      const auto index = std::static_pointer_cast<const SketchIndex>(run.index);
      const auto starts = index->starts(head);
      std::vector<float> key(shape.key_dim);
      for (std::uint32_t c = 0; c < index->clusters(); ++c) {
        read_mean(run, head, c, &key);
        double score = 0;
        for (std::uint32_t d = 0; d < shape.key_dim; ++d)
          score += double{query.query[h * shape.key_dim + d]} * key[d];
        all += (starts[c + 1] - starts[c]) * std::exp(score);
        for (std::uint32_t i = starts[c]; i < starts[c + 1] && estimated[r][c] == 0; ++i)
          if (!(sets[r][i / 64] >> i % 64 & 1)) missing += std::exp(score);
      }
    }
    most = std::max(most, missing / all);
  }
  return most;
}

TEST(SketchChoose, ReadsItsBudgetAndEstimatesTheRest) {
  for (const auto& [group, bits] : {std::pair{1u, 2u}, {3u, 2u}, {9u, 2u}, {3u, 16u}}) {
    const auto selector = sketch({.share = 0.05, .min_rows = 30, .bits = bits, .candidates = 1000});
    const std::uint64_t looked_at = bits == 16 ? 64 * sizeof(f16) : 64 / 4 + sizeof(f16);
    const Workers workers(2);
    // Runs of awkward sizes, one of them longer than a job.
    const Scene scene(*selector, {group, 64, 64}, 2, {1500, 70, 333}, workers);
    Chosen cost;
    const std::vector<ReadList> lists = scene.choose(selector.get(), workers, &cost);
    std::uint64_t bytes = 0;
    for (std::uint32_t h = 0; h < 2; ++h) {
      check_well_formed(lists[h], scene.sealed.runs());
      // Of the budget, the rows that are not sealed have their part.
      const std::uint64_t budget = std::uint64_t(0.05 * scene.length) - Scene::kSteadyRows;
      EXPECT_EQ(rows_read(scene.sealed.runs(), lists[h], Form::rows), budget);
      // Read rows and estimated rows are all rows but those of clusters without mass.
      double rows = 0;
      for (const std::vector<double>& counts : estimated_rows(scene, h, lists[h]))
        for (const double n : counts) rows += n;
      EXPECT_LT(rows, 1903 - static_cast<double>(budget) + 1e-2 + 1e-3 * 1903);
      EXPECT_LT(left_out_mass(scene, h, lists[h]), 5e-3);
      for (const auto& run : scene.sealed.runs())
        bytes += (run.rows->rows + 15) / 16 * (16 * looked_at + 68);
      bytes += lists[h].log_weight.size() / group * 34;
    }
    EXPECT_EQ(cost.index_bytes, bytes);
  }
}

TEST(SketchChoose, WeighsEachClusterByItsUnreadRows) {
  const auto selector = sketch({.share = 0.1});
  const Workers workers(1);
  const Scene scene(*selector, {3, 64, 64}, 1, {1000}, workers);
  const ReadList list = scene.choose(selector.get(), workers)[0];
  std::vector<bool> read(1000);
  for (const Read& r : list.reads)
    for (std::uint32_t p = r.first; p < r.last; ++p)
      for (std::uint32_t bit = 0; bit < 64; ++bit)
        if (list.picks[p].rows >> bit & 1) {
          if (r.form == Form::rows) read[list.picks[p].block * 64 + bit] = true;
        }
  const std::vector<double> estimated = estimated_rows(scene, 0, list)[0];
  const auto index = std::static_pointer_cast<const SketchIndex>(scene.sealed.runs()[0].index);
  const auto starts = index->starts(0);
  int without = 0;  // clusters whose mass is negligible
  for (std::uint32_t c = 0; c < 63; ++c) {
    int unread = 0;
    for (std::uint32_t r = starts[c]; r < starts[c + 1]; ++r) unread += !read[r];
    if (estimated[c] > 0)
      EXPECT_NEAR(estimated[c], unread, 1e-3 * unread) << c;
    else
      without += unread > 0;
  }
  EXPECT_LT(without, 20);
}

// Rows that are all alike leave most clusters empty, and an empty cluster has no mean to score.
// These scores are so far below 0 that beside a mean of zeros nothing would be left of them.
TEST(SketchChoose, EmptyClustersDoNotCount) {
  const auto selector = sketch({.share = 0.1, .min_rows = 8});
  const Workers workers(1);
  Scene scene(*selector, {3, 64, 64}, 1, {400}, workers);
  SyntheticRows synthetic(scene.shape, 1, 400, 9, 3);
  for (std::uint32_t r = 0; r < 400; ++r) std::fill_n(synthetic.key(0, r), 64, to_f16(2.0f));
  const Sealing sealing = synthetic.sealing();
  scene.sealed = SealedRuns();
  scene.sealed.add(sealing, *selector->form(sealing, workers));
  std::fill(scene.query.begin(), scene.query.end(), -2.0f);  // scores of -256
  scene.steady[0].assign(3, AttnState{});
  const auto index = std::static_pointer_cast<const SketchIndex>(scene.sealed.runs()[0].index);
  const auto starts = index->starts(0);
  bool empty = false;
  for (std::uint32_t c = 0; c < index->clusters(); ++c) empty = empty || starts[c] == starts[c + 1];
  ASSERT_TRUE(empty);
  const ReadList list = scene.choose(selector.get(), workers)[0];
  EXPECT_EQ(rows_read(scene.sealed.runs(), list, Form::rows), 22u);
  double estimated = 0;
  const auto of_runs = estimated_rows(scene, 0, list);
  for (const double rows : of_runs[0]) estimated += rows;
  EXPECT_NEAR(estimated, 400 - 22, 1.0);
}

// How much of the attention is covered by 2 % of the rows: chosen by the sketch of the clusters
// with most mass, and by the true mass.
std::pair<double, double> covered_and_best(double candidates, std::uint32_t bits = 2) {
  const auto selector = sketch({.share = 0.02,
                                .min_rows = 1,
                                .bits = bits,
                                .candidates = candidates,
                                .least_candidates = 1});
  const Workers workers(2);
  double covered = 0, best = 0;
  int lists_seen = 0;
  for (const std::uint32_t dim : {64u, 128u}) {
    const Scene scene(*selector, {3, dim, dim}, 2, {4000, 1000}, workers, dim);
    const std::vector<ReadList> lists = scene.choose(selector.get(), workers);
    for (std::uint32_t h = 0; h < 2; ++h) {
      const ListQuery query = scene.lists()[h];
      covered += covered_mass(scene.shape, query, scene.sealed.keys(h), lists[h]);
      ++lists_seen;
      // The same number of rows, chosen by their true mass.
      std::vector<double> mass(5000);
      double steady = 0;
      for (std::uint32_t g = 0; g < 3; ++g) {
        std::vector<double> score;
        for (const RunKeys& run : scene.sealed.keys(h))
          for (std::uint32_t r = 0; r < run.rows; ++r) {
            double s = 0;
            for (std::uint32_t d = 0; d < dim; ++d)
              s += double{query.query[g * dim + d]} *
                   to_float(reinterpret_cast<const f16*>(run.data + r * run.layout.bytes())[d]);
            score.push_back(s);
          }
        const double max = *std::max_element(score.begin(), score.end());
        double sum = 2.0 * std::exp(1.0 - max);
        for (const double s : score) sum += std::exp(s - max);
        for (std::size_t r = 0; r < 5000; ++r) mass[r] += std::exp(score[r] - max) / sum / 3;
        steady += 2.0 * std::exp(1.0 - max) / sum / 3;
      }
      std::sort(mass.begin(), mass.end(), std::greater<>());
      const int selected = int(0.02 * scene.length) - int(Scene::kSteadyRows);
      best += std::accumulate(mass.begin(), mass.begin() + selected, steady);
    }
  }
  return {covered / lists_seen, best / lists_seen};
}

TEST(SketchChoose, FindsTheTrueMass) {
  // There is something to find, and nearly all of it is found. Two bits leave 0.12 of a residual's
  // energy: noise of 0.7 and 1.0 on these scores, which mixes up rows near the budget's edge.
  const auto [covered, best] = covered_and_best(1000);
  EXPECT_GT(best, 0.5);
  EXPECT_GT(covered, 0.95 * best);
  // These keys lie further from their clusters' means than a model's do, so means mislead more.
  const auto [covered_by_many, same] = covered_and_best(32);
  EXPECT_EQ(same, best);
  EXPECT_GT(covered_by_many, 0.94 * best);
  const auto [covered_by_few, again] = covered_and_best(2);
  EXPECT_LT(covered_by_few, covered_by_many);
  EXPECT_EQ(again, best);
  // Keys mix up nothing.
  EXPECT_NEAR(covered_and_best(1000, 16).first, best, 1e-4 * best);
}

// Rows in a direction of their own lie together, and one of them is far longer than their mean.
TEST(SketchChoose, AScoreFarAboveItsClustersIsNoInfinity) {
  const HeadShape shape{2, 32, 32};
  const auto selector = sketch({.share = 0.0, .min_rows = 10, .bits = 16});
  SyntheticRows synthetic(shape, 1, 400, 9, 3);
  for (std::uint32_t r = 100; r < 116; ++r)
    std::fill_n(synthetic.key(0, r), 32, to_f16(r == 107 ? 100.0f : 10.0f));
  const Sealing sealing = synthetic.sealing();
  const Formation formed = *selector->form(sealing, Workers(1));
  SealedRuns sealed;
  sealed.add(sealing, formed);
  const std::vector<float> query(64, 0.25f);
  const ListQuery list{0, 400, query.data(), {}, 0, sealed.runs()};
  std::vector<ReadList> out(1);
  ASSERT_TRUE(selector->choose({{}, shape, {&list, 1}}, Workers(1), out));
  std::set<std::uint32_t> read;
  for (const Read& of : out[0].reads)
    for (std::uint32_t p = of.first; p < of.last && of.form == Form::rows; ++p)
      for (RowSet left = out[0].picks[p].rows; left != 0; left &= left - 1)
        read.insert(formed.order[out[0].picks[p].block * 64 +
                                 static_cast<std::uint32_t>(std::countr_zero(left))]);
  EXPECT_EQ(read.size(), 10u);
  EXPECT_TRUE(read.contains(107));
}

TEST(SketchChoose, IsTheSameOnAnyNumberOfThreads) {
  for (const std::uint32_t bits : {2u, 16u}) {
    const auto selector = sketch({.bits = bits}), other = sketch({.bits = bits});
    const Workers one(1), two(2), many(5);
    // So many rows that threads share a list's.
    const Scene scene(*selector, {3, 64, 64}, 3, {5000, 6000}, one);
    const std::vector<ReadList> a = scene.choose(selector.get(), one);
    for (const Workers* workers : {&two, &many})
      for (Selector* s : {selector.get(), other.get()}) {
        const std::vector<ReadList> b = scene.choose(s, *workers);
        for (std::uint32_t h = 0; h < 3; ++h) EXPECT_TRUE(same_reads(a[h], b[h]));
      }
  }
}

TEST(SketchChoose, IsTheSameInABatch) {
  const auto selector = sketch();
  const Workers workers(2);
  const Scene a(*selector, {3, 64, 64}, 2, {3000}, workers),
      b(*selector, {3, 64, 64}, 2, {50, 2000}, workers, 9);
  const std::vector<ReadList> alone_a = a.choose(selector.get(), workers),
                              alone_b = b.choose(selector.get(), workers);
  std::vector<ListQuery> both = a.lists();
  for (const ListQuery& l : a.lists()) both.push_back(l);
  std::vector<ReadList> out(4);
  selector->choose({{}, a.shape, both}, workers, out);
  for (std::uint32_t h = 0; h < 4; ++h) EXPECT_TRUE(same_reads(out[h], alone_a[h % 2]));
  EXPECT_FALSE(same_reads(alone_a[0], alone_b[0]));
}

TEST(SketchChoose, ReadsEverythingBelowTheBudget) {
  const auto selector = sketch({.share = 0.0, .min_rows = 400});
  const Workers workers(2);
  for (const std::uint32_t rows : {1u, 399u, 400u, 401u}) {
    const Scene scene(*selector, {2, 32, 32}, 1, {rows}, workers);
    Chosen cost;
    const ReadList list = scene.choose(selector.get(), workers, &cost)[0];
    ASSERT_FALSE(list.reads.empty());
    EXPECT_EQ(list.reads[0].everything, rows <= 400) << rows;
    EXPECT_EQ(list.picks.empty(), rows <= 400);
    EXPECT_EQ(cost.index_bytes == 0, rows <= 400);
    EXPECT_EQ(rows_read(scene.sealed.runs(), list, Form::rows), std::min(rows, 400u));
  }
  const auto all = sketch({.share = 1.0});
  const Scene scene(*all, {2, 32, 32}, 1, {300, 500}, workers);
  const ReadList list = scene.choose(all.get(), workers)[0];
  ASSERT_EQ(list.reads.size(), 2u);
  EXPECT_TRUE(list.reads[0].everything && list.reads[1].everything);
}

TEST(SketchChoose, ReadsNoMoreOfALongTextThanItIsTold) {
  const Workers workers(2);
  const auto read = [&](const SketchOptions& options, Form form = Form::rows) {
    const auto selector = sketch(options);
    const Scene scene(*selector, {2, 32, 32}, 1, {1500, 500}, workers);
    return rows_read(scene.sealed.runs(), scene.choose(selector.get(), workers)[0], form);
  };
  EXPECT_EQ(read({.share = 0.1, .most_rows = 150}), 150u - Scene::kSteadyRows);
  EXPECT_EQ(read({.share = 0.1, .most_rows = 5000}), read({.share = 0.1}));
  EXPECT_EQ(read({.share = 0.1, .min_rows = 170, .most_rows = 150}), 170u);
  const auto coded = [&](std::uint32_t most) {
    const SketchOptions ladder{.share = 0, .min_rows = 30, .coded = 0.1, .most_coded = most};
    return read(ladder, Form::codes) + read(ladder);
  };
  EXPECT_EQ(coded(150), 150u - Scene::kSteadyRows);
  EXPECT_EQ(coded(5000), coded(0));
  EXPECT_EQ(coded(Scene::kSteadyRows), 30u);
}

TEST(SketchChoose, ReadsRunsOfOtherMethodsWhole) {
  const auto selector = sketch({.share = 0.05});
  const Workers workers(2);
  Scene scene(*selector, {2, 32, 32}, 1, {2000}, workers);
  SyntheticRows plain({2, 32, 32}, 1, 90, 4, 8);
  scene.sealed.add(plain.sealing(), Formation{});
  const ReadList list = scene.choose(selector.get(), workers)[0];
  check_well_formed(list, scene.sealed.runs());
  EXPECT_TRUE(std::any_of(list.reads.begin(), list.reads.end(),
                          [](const Read& r) { return r.run == 1 && r.everything; }));
  EXPECT_EQ(rows_read(scene.sealed.runs(), list, Form::rows),
            90 + std::uint64_t(0.05 * scene.length) - Scene::kSteadyRows);
}

TEST(SketchChoose, AllocatesNothingTheSecondTime) {
  // All rows are looked at; those of the best clusters; those of the best groups' best clusters.
  const SketchOptions all, best{.candidates = 2, .least_candidates = 1};
  SketchOptions of_groups = best;
  of_groups.means = 64;
  for (SketchOptions options : {all, best, of_groups})
    for (const double coded : {0.0, 0.1}) {
      options.coded = coded;
      SCOPED_TRACE(testing::Message() << "candidates " << options.candidates << ", means "
                                      << options.means << ", coded " << coded);
      const auto selector = sketch(options);
      const Workers workers(1);
      const Scene scene(*selector, {3, 64, 64}, 2, {3000, 1000}, workers);
      std::vector<ReadList> out(2);
      const std::vector<ListQuery> lists = scene.lists();
      std::uint64_t before = 0, counted = 0;
      for (int time = 0; time < 2; ++time) {
        before = test::allocations;
        ASSERT_TRUE(selector->choose({{}, scene.shape, lists}, workers, out));
        counted = test::allocations - before;
        if (time == 0) {
          EXPECT_GT(counted, 0u);
        }
      }
      EXPECT_EQ(counted, 0u);
    }
}

TEST(PlainSelectors, ReadAllOrNothing) {
  EverythingSelector everything;
  NothingSelector nothing;
  const Workers workers(2);
  const Scene scene(everything, {2, 32, 32}, 2, {100, 64}, workers);
  EXPECT_FALSE(scene.sealed.runs()[0].summaries);
  for (const ReadList& list : scene.choose(&everything, workers)) {
    EXPECT_EQ(rows_read(scene.sealed.runs(), list, Form::rows), 164u);
    EXPECT_TRUE(list.picks.empty());
  }
  for (const ReadList& list : scene.choose(&nothing, workers)) EXPECT_TRUE(list.reads.empty());
  const ReadList all = scene.choose(&everything, workers)[1], none;
  const ListQuery query = scene.lists()[1];
  EXPECT_NEAR(covered_mass(scene.shape, query, scene.sealed.keys(1), all), 1.0, 1e-12);
  const double steady = covered_mass(scene.shape, query, scene.sealed.keys(1), none);
  EXPECT_GT(steady, 0.0);
  EXPECT_LT(steady, 0.9);
}

}  // namespace
}  // namespace thermocline
