// The whole selection of a list against plain loops in double precision, written from what
// retrieval/select/sketch*.h and kernels/sketch.h say of the method. What form()
// made is taken as it is.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "retrieval/index/sketch_index.h"
#include "retrieval/select/sketch.h"
#include "tests/unit/retrieval/sealed_keys.h"

namespace thermocline {
namespace {

// Of a mass: the kernels take e^x within 1.1e-4 of it and queries that meet means in 16 bits. Rows
// whose masses differ by less are a near tie.
constexpr double kNearTie = 2e-3;
constexpr double kScoreError = 2e-3;
// As in sketch_reads.cpp: what has less mass is not estimated.
constexpr double kNegligible = 5e-5;

// x [n] by the Hadamard matrix of the largest power of two that divides n, block by block.
std::vector<double> rotate(const float* x, std::size_t n) {
  const std::size_t block = n & (~n + 1);
  std::vector<double> out(n);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < block; ++j) {
      const double sign = std::popcount(i % block & j) % 2 == 0 ? 1.0 : -1.0;
      out[i] += sign * x[i / block * block + j] / std::sqrt(static_cast<double>(block));
    }
  return out;
}

// Rounded to 8 bits of the largest.
std::vector<double> sketched_query(const float* query, std::size_t n) {
  std::vector<double> q = rotate(query, n);
  double largest = 0;
  for (const double x : q) largest = std::max(largest, std::abs(x));
  for (double& x : q) x = std::nearbyint(x * 127 / largest) * largest / 127;
  return q;
}

double dot(const float* a, const float* b, std::size_t n) {
  return std::inner_product(a, a + n, b, 0.0, std::plus<>(),
                            [](double x, double y) { return x * y; });
}

// A cluster, or a group of them.
struct Cluster {
  std::uint32_t run, first, end;  // its rows
  std::uint32_t summary;
  std::vector<double> score = {};  // [heads]
  double spread = 0;
  double mass = 0;         // of one of its rows, over the heads, as means see it
  bool scored = true;      // a cluster's mean is asked, or a group's for what is left of it
  bool candidate = true;   // of a group that was taken
  std::uint32_t left = 0;  // a group's rows in clusters that are not scored
  bool group = false;
  std::uint32_t size() const { return group ? left : end - first; }
};

struct Row {
  std::uint32_t run, row;
  double mass = 0;
  double worth = 0;           // to be read: the mass, or, of a coded row, what its code would lose
  std::vector<double> score;  // [heads]
};

// What is to be chosen for a list.
class Oracle {
 public:
  Oracle(const SketchOptions& options, HeadShape shape, const ListQuery& list)
      : options_(options), shape_(shape), list_(list) {
    read_clusters();
    read_rows();
  }

  void choose() {
    budget_ = std::max<std::size_t>(
        options_.min_rows,
        static_cast<std::size_t>(std::max(0.0, options_.share * list_.length - list_.steady_rows)));
    ASSERT_LT(budget_, rows_) << "nothing to choose";
    candidates_ = std::max<double>(options_.candidates * static_cast<double>(budget_),
                                   options_.least_candidates);
    take_groups();
    const std::vector<double> share = shares([this](std::uint32_t h) { return by_means(h); });
    for (Cluster& c : clusters_)
      for (std::uint32_t h = 0; h < shape_.heads; ++h) c.mass += share[h] * std::exp(c.score[h]);
    find_candidates(share);
    weigh_rows();
  }

  // And the groups, if any were asked, those of a run after its clusters.
  const std::vector<Cluster>& clusters() const { return clusters_; }
  bool grouped() const { return grouped_; }
  // Those that are looked at, the best first; `budget` of them are read.
  const std::vector<Row>& rows() const { return looked_at_; }
  std::size_t budget() const { return std::min(budget_, looked_at_.size()); }
  // Of these, those that are not read are attended from their codes.
  std::size_t coded_budget() const {
    if (options_.coded == 0) return budget();
    const double coded = std::max(0.0, options_.coded * list_.length - list_.steady_rows);
    return std::min(std::max(budget_, static_cast<std::size_t>(coded)), looked_at_.size());
  }
  bool looks_at_all() const { return all_; }
  // Whether the last candidate and the first cluster that is none are a near tie: then rounding
  // says which rows are looked at.
  bool ambiguous() const { return ambiguous_; }
  // Rows are read of those that are coded, where any are.
  bool may_be_read(const Row& row) const {
    return !options_.codes_values() || row.mass > rows()[coded_budget() - 1].mass * (1 + kNearTie);
  }
  double least_worth() const {
    std::vector<double> worths;
    const std::size_t among = options_.codes_values() ? coded_budget() : rows().size();
    for (std::size_t i = 0; i < among; ++i) worths.push_back(rows()[i].worth);
    std::sort(worths.begin(), worths.end(), std::greater<>());
    return worths[budget() - 1];
  }

  // The log of a query head's mass, by means.
  double log_mass(std::uint32_t h) const {
    double sum = 0;
    for (const Cluster& c : clusters_)
      if (c.scored) sum += c.size() * std::exp(c.score[h]);
    return std::log(sum);
  }

 private:
  const SketchIndex* index(std::uint32_t run) const {
    return dynamic_cast<const SketchIndex*>(list_.runs[run].index.get());
  }
  const float* query(std::uint32_t h) const { return list_.query + h * shape_.key_dim; }

  void read_clusters() {
    std::vector<float> mean(shape_.key_dim);
    for (std::uint32_t r = 0; r < list_.runs.size(); ++r) {
      const SketchIndex* of = index(r);
      if (!of) continue;
      rows_ += of->rows();
      const auto starts = of->starts(list_.head);
      const auto read_mean = [&](Cluster* to) {
        read_row(SketchIndex::kMeanFormat, of->means(list_.head) + to->summary * of->mean_bytes(),
                 shape_.key_dim, mean.data());
        for (std::uint32_t h = 0; h < shape_.heads; ++h)
          to->score.push_back(dot(query(h), mean.data(), shape_.key_dim));
      };
      for (std::uint32_t c = 0; c < of->clusters(); ++c) {
        Cluster cluster{r, starts[c], starts[c + 1], c};
        for (std::uint32_t i = cluster.first; i < cluster.end; ++i)
          cluster.spread = std::max<double>(cluster.spread, to_float(of->scales(list_.head)[i]));
        read_mean(&cluster);
        clusters_.push_back(cluster);
      }
      const auto groups = of->group_starts(list_.head);
      for (std::uint32_t g = 0; g < of->groups(); ++g) {
        Cluster group{r, starts[groups[g]], starts[groups[g + 1]], of->clusters() + g};
        group.group = true;
        group.scored = false;
        group.left = group.end - group.first;
        group.spread = of->spreads(list_.head)[group.summary];
        read_mean(&group);
        clusters_.push_back(group);
      }
    }
  }

  // score_[h][run][row]: the cluster's and the sketch's, or the key's.
  void read_rows() {
    score_.resize(shape_.heads);
    for (std::uint32_t h = 0; h < shape_.heads; ++h) {
      const std::vector<double> q = sketched_query(query(h), shape_.key_dim);
      score_[h].resize(list_.runs.size());
      for (const Cluster& c : clusters_)
        for (std::uint32_t row = c.first; row < c.end && !c.group; ++row)
          score_[h][c.run].push_back(options_.keeps_keys()
                                         ? exact(*index(c.run), row, h)
                                         : c.score[h] + sketched(*index(c.run), row, q));
    }
  }
  double exact(const SketchIndex& of, std::uint32_t row, std::uint32_t h) const {
    std::vector<float> key(shape_.key_dim);
    read_row(RowFormat::f16, of.keys(list_.head) + row * shape_.key_dim * sizeof(f16),
             shape_.key_dim, key.data());
    return dot(query(h), key.data(), shape_.key_dim);
  }
  double sketched(const SketchIndex& of, std::uint32_t row, const std::vector<double>& q) const {
    const std::size_t dim = shape_.key_dim, bits = options_.bits, n = 32 / bits;
    const std::uint8_t* group = of.codes(list_.head) + row / 16 * (2 * dim * bits);
    double sum = 0;
    for (std::size_t channel = 0; channel < dim; ++channel) {
      const std::size_t t = channel / n, s = channel % n / 4, j = channel % 4;
      const int code = group[64 * t + 4 * (row % 16) + j] >> bits * s & ((1 << bits) - 1);
      sum += (code - ((1 << bits) - 1) / 2.0) * q[channel];
    }
    return sum * to_float(of.scales(list_.head)[row]);
  }

  double by_means(std::uint32_t h) const { return std::exp(log_mass(h)); }

  // One over each head's whole mass: what it has attended already, and the sealed rows'.
  std::vector<double> shares(const std::function<double(std::uint32_t)>& sealed) const {
    std::vector<double> share;
    for (std::uint32_t h = 0; h < shape_.heads; ++h) {
      const AttnState& steady = list_.steady[h];
      const double beside = steady.sum > 0 ? steady.sum * std::exp(double{steady.max}) : 0.0;
      share.push_back(1 / (beside + sealed(h)));
    }
    return share;
  }

  // How much mass a row may have.
  double rating(const Cluster& c, const std::vector<double>& share) const {
    double sum = 0;
    for (std::uint32_t h = 0; h < shape_.heads; ++h) {
      const double length = std::sqrt(dot(query(h), query(h), shape_.key_dim));
      sum += share[h] * std::exp(c.score[h] + options_.reach * length * c.spread);
    }
    return sum;
  }

  // Where clusters are many, only those of the best groups are scored, and those with rows in the
  // sixteens at their ends.
  void take_groups() {
    double clusters = 0, groups = 0;
    for (const Cluster& c : clusters_) ++(c.group ? groups : clusters);
    const double wanted = std::max<double>(options_.means, 2 * candidates_ / options_.cluster);
    grouped_ = 2 * wanted < clusters;
    if (!grouped_) return;
    const std::vector<double> share = shares([this](std::uint32_t h) {
      double sum = 0;
      for (const Cluster& c : clusters_)
        if (c.group) sum += c.left * std::exp(c.score[h]);
      return sum;
    });
    std::vector<std::pair<double, std::size_t>> rated;
    for (std::size_t i = 0; i < clusters_.size(); ++i) {
      Cluster& c = clusters_[i];
      c.candidate = index(c.run)->groups() == 0;
      c.scored = c.group || c.candidate;
      if (c.group) rated.emplace_back(c.left > 0 ? -rating(c, share) : 0.0, i);
    }
    std::sort(rated.begin(), rated.end());
    const auto most = static_cast<std::size_t>(std::ceil(wanted / clusters * groups));
    ambiguous_ = rated[most].first / rated[most - 1].first > 1 - kNearTie;
    for (std::size_t i = 0; i < most; ++i) {
      const Cluster& group = clusters_[rated[i].second];
      const std::uint32_t first = group.first / 16 * 16, end = (group.end + 15) / 16 * 16;
      for (Cluster& c : clusters_) {
        if (c.group || c.run != group.run || c.size() == 0 || group.left == 0) continue;
        if (c.first < end && c.end > first) c.scored = true;
        if (c.first >= group.first && c.end <= group.end) c.candidate = true;
      }
    }
    for (Cluster& group : clusters_)
      for (const Cluster& c : clusters_)
        if (group.group && !c.group && c.scored && c.run == group.run && c.first >= group.first &&
            c.end <= group.end)
          group.left -= c.size();
  }

  // Looks at every row, or at the groups of 16 in which the best clusters have rows.
  void find_candidates(const std::vector<double>& share) {
    for (std::uint32_t r = 0; r < list_.runs.size(); ++r)
      seen_.emplace_back(index(r) ? index(r)->rows() : 0);
    all_ = 3 * candidates_ >= static_cast<double>(rows_);
    if (all_) {
      for (auto& run : seen_) std::fill(run.begin(), run.end(), true);
      return;
    }
    std::vector<std::pair<double, std::size_t>> rated;
    for (std::size_t c = 0; c < clusters_.size(); ++c) {
      if (clusters_[c].size() == 0 || clusters_[c].group || !clusters_[c].candidate) continue;
      rated.emplace_back(-rating(clusters_[c], share), c);
    }
    std::sort(rated.begin(), rated.end());
    const std::size_t most =
        std::min(rated.size(), static_cast<std::size_t>(std::ceil(candidates_ / options_.cluster)));
    ambiguous_ = ambiguous_ ||
                 (most < rated.size() && rated[most].first / rated[most - 1].first > 1 - kNearTie);
    for (std::size_t i = 0; i < most; ++i) {
      const Cluster& c = clusters_[rated[i].second];
      auto& seen = seen_[c.run];
      for (std::size_t row = c.first / 16 * 16;
           row < std::min<std::size_t>((c.end + 15) / 16 * 16, seen.size()); ++row)
        seen[row] = true;
    }
  }

  void weigh_rows() {
    // A row that is not looked at has its cluster's mass.
    const std::vector<double> share = shares([this](std::uint32_t h) {
      double sum = 0;
      for (const Cluster& c : clusters_) {
        if (c.group && c.scored) sum += c.left * std::exp(c.score[h]);
        for (std::uint32_t row = c.first; row < c.end && c.scored && !c.group; ++row)
          sum += std::exp(seen_[c.run][row] ? score_[h][c.run][row] : c.score[h]);
      }
      return sum;
    });
    for (std::uint32_t r = 0; r < seen_.size(); ++r)
      for (std::uint32_t row = 0; row < seen_[r].size(); ++row) {
        if (!seen_[r][row]) continue;
        Row looked{r, row, 0, 0, {}};
        for (std::uint32_t h = 0; h < shape_.heads; ++h) {
          looked.mass += share[h] * std::exp(score_[h][r][row]);
          looked.score.push_back(score_[h][r][row]);
        }
        const double scale = to_float(index(r)->scales(list_.head)[row]);
        looked.worth =
            looked.mass * (options_.codes_values() ? std::max(scale * scale, 1e-9) : 1.0);
        looked_at_.push_back(looked);
      }
    std::stable_sort(looked_at_.begin(), looked_at_.end(),
                     [](const Row& a, const Row& b) { return a.mass > b.mass; });
  }

  const SketchOptions& options_;
  const HeadShape shape_;
  const ListQuery& list_;
  std::size_t rows_ = 0, budget_ = 0;
  std::vector<Cluster> clusters_;
  std::vector<std::vector<std::vector<double>>> score_;
  std::vector<std::vector<bool>> seen_;
  std::vector<Row> looked_at_;
  double candidates_ = 0;
  bool all_ = false, grouped_ = false, ambiguous_ = false;
};

// A list as it was chosen: for each run the rows that are read, and the scores of those that are
// attended from their codes and of its summaries.
struct Answer {
  std::vector<std::vector<bool>> rows;
  std::vector<std::map<std::uint32_t, std::vector<float>>> codes;      // by row: [heads]
  std::vector<std::map<std::uint32_t, std::vector<float>>> summaries;  // by cluster: [heads]
};

Answer read_answer(const ReadList& list, std::span<const Run> runs, std::uint32_t heads) {
  Answer answer;
  for (const Run& run : runs) answer.rows.emplace_back(run.rows->rows);
  answer.summaries.resize(runs.size());
  answer.codes.resize(runs.size());
  for (const Read& read : list.reads) {
    if (read.everything) answer.rows[read.run].assign(answer.rows[read.run].size(), true);
    const float* weight = list.log_weight.data() + read.first_weight;
    for (std::uint32_t p = read.first; p < read.last; ++p)
      for (RowSet left = list.picks[p].rows; left != 0; left &= left - 1) {
        const auto row =
            list.picks[p].block * 64 + static_cast<std::uint32_t>(std::countr_zero(left));
        if (read.form == Form::rows) {
          answer.rows[read.run].at(row) = true;
          continue;
        }
        EXPECT_TRUE(read.scored && read.weights_a_row == heads);
        EXPECT_EQ(read.residual, read.form == Form::codes);
        auto& into = read.form == Form::codes ? answer.codes : answer.summaries;
        into[read.run][row].assign(weight, weight + heads);
        weight += heads;
      }
  }
  return answer;
}

// The rows with most mass, but for near ties and those that are read, with their own scores.
void expect_codes(const Oracle& oracle, const Answer& answer) {
  std::size_t coded = 0, read = 0;
  const double edge = oracle.rows()[oracle.coded_budget() - 1].mass;
  for (const Row& row : oracle.rows()) {
    const auto found = answer.codes[row.run].find(row.row);
    SCOPED_TRACE("row " + std::to_string(row.row) + " of run " + std::to_string(row.run));
    if (answer.rows[row.run][row.row]) {
      ++read;
      EXPECT_GE(row.mass, edge * (1 - kNearTie));
      EXPECT_TRUE(found == answer.codes[row.run].end());
    } else if (found != answer.codes[row.run].end()) {
      ++coded;
      EXPECT_GE(row.mass, edge * (1 - kNearTie));
      for (std::size_t h = 0; h < row.score.size(); ++h)
        EXPECT_NEAR(found->second[h], row.score[h], kScoreError);
    } else {
      EXPECT_LE(row.mass, edge * (1 + kNearTie));
    }
  }
  EXPECT_EQ(read + coded, oracle.coded_budget());
  std::size_t listed = 0;
  for (const auto& run : answer.codes) listed += run.size();
  EXPECT_EQ(listed, coded) << "rows that were not looked at";
}

// The rows that are worth most to read, but for near ties at the budget's edge.
void expect_rows(const Oracle& oracle, const Answer& answer) {
  std::vector<std::vector<bool>> others = answer.rows;
  std::size_t taken = 0;
  const double edge = oracle.least_worth();
  for (const Row& row : oracle.rows()) {
    const bool read = answer.rows[row.run][row.row];
    taken += read;
    others[row.run][row.row] = false;
    if (read) {
      EXPECT_GE(row.worth, edge * (1 - kNearTie)) << "read: row " << row.row << " of " << row.run;
    } else if (oracle.may_be_read(row)) {
      EXPECT_LE(row.worth, edge * (1 + kNearTie)) << "unread: row " << row.row << " of " << row.run;
    }
  }
  EXPECT_EQ(taken, oracle.budget());
  for (const Cluster& c : oracle.clusters())
    for (std::uint32_t row = c.first; row < c.end; ++row)
      EXPECT_FALSE(others[c.run][row]) << "not looked at: row " << row << " of " << c.run;
}

// The summaries of clusters with rows that are not read, with their mass: as the mean estimates it,
// or, of coded rows, as those do.
void expect_summaries(const Oracle& oracle, const Answer& answer) {
  std::map<std::pair<std::uint32_t, std::uint32_t>, const Row*> looked_at;
  for (const Row& row : oracle.rows()) looked_at[{row.run, row.row}] = &row;
  std::size_t met = 0, listed = 0;
  for (const auto& of_run : answer.summaries) listed += of_run.size();
  for (const Cluster& c : oracle.clusters()) {
    if (!c.scored) continue;
    const std::uint32_t run = c.run;
    const auto& summaries = answer.summaries[run];
    const auto found = summaries.find(c.summary);
    met += found != summaries.end();
    int unread = static_cast<int>(c.left);
    std::vector<const Row*> coded;
    for (std::uint32_t row = c.first; row < c.end && !c.group; ++row) {
      if (answer.rows[run][row]) continue;
      if (answer.codes[run].count(row))
        coded.push_back(looked_at.at({run, row}));
      else
        ++unread;
    }
    const double mass = unread * c.mass;
    SCOPED_TRACE("summary " + std::to_string(c.summary) + " of run " + std::to_string(run));
    if (found == summaries.end()) {
      EXPECT_LE(mass, kNegligible * (1 + kNearTie));
      EXPECT_TRUE(coded.empty());
      continue;
    }
    ASSERT_GT(unread + coded.size(), 0u);
    if (coded.empty()) {
      EXPECT_GE(mass, kNegligible * (1 - kNearTie));
    }
    for (std::size_t h = 0; h < c.score.size(); ++h) {
      double weight = unread * std::exp(c.score[h]);
      for (const Row* row : coded) weight += std::exp(row->score[h]);
      EXPECT_NEAR(found->second[h], std::log(weight), kScoreError);
    }
  }
  EXPECT_EQ(met, listed) << "summaries of what was not scored";
}

struct Setting {
  SketchOptions options;
  HeadShape shape;
  std::uint32_t heads;  // KV heads
  std::vector<std::uint32_t> runs;
  std::size_t plain;     // the run that another method formed, if there is one of this number
  bool all;              // whether every row is looked at
  bool grouped = false;  // whether only some groups' clusters are scored
};

constexpr std::size_t kNoPlain = 99;

std::vector<Setting> settings() {
  const auto few = [](double candidates, std::uint32_t cluster, double reach,
                      std::uint32_t least_candidates = 1) {
    return SketchOptions{.share = 0.04,
                         .min_rows = 20,
                         .cluster = cluster,
                         .candidates = candidates,
                         .least_candidates = least_candidates,
                         .reach = reach};
  };
  const auto coded = [&](double candidates, std::uint32_t bits, std::uint32_t value_bits) {
    SketchOptions options = few(candidates, 16, 2.5);
    options.bits = bits;
    options.coded = 0.12;
    options.value_bits = value_bits;
    return options;
  };
  const auto exact = [](SketchOptions options) {
    options.bits = SketchIndex::kKeyBits;
    return options;
  };
  const auto grouped = [](SketchOptions options, std::uint32_t means) {
    options.means = means;
    return options;
  };
  return {
      {few(4, 16, 2.5), {3, 64, 32}, 2, {1500, 70, 333}, kNoPlain, false},
      {few(2, 8, 2.5), {4, 96, 32}, 3, {700, 16, 90, 17, 640}, 2, false},
      {few(3, 5, 4), {7, 32, 32}, 2, {1000, 513}, kNoPlain, false},
      {few(1, 8, 1, 400), {3, 32, 32}, 2, {1000, 513}, kNoPlain, false},
      {few(1, 8, 1, 505), {3, 32, 32}, 2, {1000, 513}, kNoPlain, true},
      {few(16, 16, 2.5), {3, 64, 32}, 2, {500, 70, 333}, kNoPlain, true},
      {few(1000, 4, 2.5), {5, 80, 32}, 2, {400, 90, 1000}, 1, true},
      {coded(6, 2, 4), {3, 64, 32}, 2, {1500, 70, 333}, kNoPlain, false},
      {coded(1000, 4, 2), {4, 80, 48}, 2, {400, 90, 1000}, 1, true},
      {coded(6, 1, 2), {2, 64, 64}, 2, {900, 640}, kNoPlain, false},
      {grouped(few(2, 8, 1), 64), {3, 64, 32}, 2, {1500, 1, 70, 3, 933}, kNoPlain, false, true},
      {grouped(few(2, 4, 1), 80), {2, 64, 64}, 2, {400, 1900, 640}, 0, false, true},
      {grouped(coded(3, 2, 4), 64), {3, 64, 32}, 2, {2100, 333, 900}, kNoPlain, false, true},
      {exact(few(2, 8, 2.5)), {4, 96, 32}, 3, {700, 16, 90, 17, 640}, 2, false},
      {exact(few(1000, 4, 2.5)), {5, 80, 32}, 2, {400, 90, 1000}, 1, true},
      {grouped(exact(few(2, 8, 1)), 64), {3, 64, 32}, 2, {1500, 1, 933}, kNoPlain, false, true}};
}

class SketchOracle : public ::testing::TestWithParam<unsigned> {};

TEST_P(SketchOracle, AgreesWithTheWholeSelection) {
  const Setting setting = settings()[GetParam()];
  const HeadShape shape = setting.shape;
  const Workers workers(2);
  auto selector = *SketchSelector::create(setting.options, **choose_cpu_table("auto"));
  int compared = 0, lists_seen = 0;
  for (unsigned seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SealedRuns sealed;
    const std::uint32_t rows = std::accumulate(setting.runs.begin(), setting.runs.end(), 0u);
    SyntheticRows synthetic(shape, setting.heads, rows, rows / 24 + 1, seed);
    std::uint32_t first = 0;
    for (std::size_t r = 0; r < setting.runs.size(); first += setting.runs[r++]) {
      const Sealing sealing = synthetic.sealing(first, setting.runs[r]);
      sealed.add(sealing, r == setting.plain ? Formation{} : *selector->form(sealing, workers));
    }
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> beside(-4.0f, 4.0f);
    std::vector<float> queries(std::size_t{setting.heads} * shape.heads * shape.key_dim);
    for (float& x : queries) x = 0.25f * normal(random);
    std::vector<std::vector<AttnState>> steady(setting.heads, std::vector<AttnState>(shape.heads));
    std::vector<ListQuery> lists;
    const auto& last = static_cast<const SketchIndex&>(*sealed.runs().back().index);
    for (std::uint32_t head = 0; head < setting.heads; ++head) {
      float* query = &queries[std::size_t{head} * shape.heads * shape.key_dim];
      // The first query head looks for the very last cluster: from its neighbour's mean to its own.
      std::vector<float> mean(shape.key_dim), other(shape.key_dim);
      const auto read_mean = [&](std::uint32_t c, std::vector<float>* to) {
        read_row(SketchIndex::kMeanFormat, last.means(head) + c * last.mean_bytes(), shape.key_dim,
                 to->data());
      };
      read_mean(last.clusters() - 1, &mean);
      read_mean(0, &other);
      for (std::uint32_t d = 0; d < shape.key_dim; ++d)
        query[d] = 0.2f * query[d] + 0.02f * (mean[d] - other[d]);
      lists.push_back({head, rows + 25, query, steady[head], 25, sealed.runs()});
      // What lies beside the sealed rows has from a fiftieth to fifty times their mass, or none.
      const Oracle before(setting.options, shape, lists.back());
      for (std::uint32_t h = 0; h < shape.heads; ++h)
        if (random() % 8 != 0)
          steady[head][h] = {static_cast<float>(before.log_mass(h)) + beside(random), 1.5f,
                             nullptr};
    }
    std::vector<ReadList> out(setting.heads);
    ASSERT_TRUE(selector->choose({{}, shape, lists}, workers, out).has_value());
    for (std::uint32_t head = 0; head < setting.heads; ++head) {
      SCOPED_TRACE("head " + std::to_string(head));
      Oracle oracle(setting.options, shape, lists[head]);
      oracle.choose();
      ASSERT_EQ(oracle.looks_at_all(), setting.all);
      ASSERT_EQ(oracle.grouped(), setting.grouped);
      ++lists_seen;
      if (oracle.ambiguous()) continue;
      ++compared;
      const Answer answer = read_answer(out[head], sealed.runs(), shape.heads);
      expect_rows(oracle, answer);
      expect_codes(oracle, answer);
      expect_summaries(oracle, answer);
      if (setting.plain < sealed.runs().size()) {
        const auto& read = answer.rows[setting.plain];
        EXPECT_EQ(std::count(read.begin(), read.end(), true), std::ptrdiff_t(read.size()));
      }
    }
  }
  EXPECT_GT(2 * compared, lists_seen);
}

INSTANTIATE_TEST_SUITE_P(Settings, SketchOracle, ::testing::Range(0u, 16u));

}  // namespace
}  // namespace thermocline
