#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>

#include "retrieval/select/sketch.h"

namespace thermocline {
namespace {

// Fixed cuts: sums of weights are taken job by job.
constexpr std::uint32_t kJobRows = 256;
constexpr std::size_t kJobPatches = 4;
// Shorter loops than these are over before another thread has begun to help.
constexpr std::size_t kSharedClusters = 2048;
constexpr std::size_t kSharedRows = 8192;
constexpr float kNoRow = -1.0f;
constexpr float kNone = -std::numeric_limits<float>::infinity();
// A cluster whose unread rows have less than this share of the query heads' attention together is
// left out of the estimate: those left out have a tenth of a percent together, or little more.
constexpr float kNegligible = 5e-5f;

// What a query head has attended already; nothing where the list does not say.
AttnState steady_of(const ListQuery& list, std::uint32_t head) {
  return head < list.steady.size() ? list.steady[head] : AttnState{};
}

std::uint32_t groups_of(std::uint32_t rows) { return (rows + kSketchGroup - 1) / kSketchGroup; }

// body(first, last) over [0, jobs), with other threads' help if `shared`.
template <typename Body>
void spread(std::size_t jobs, const Workers& workers, bool shared, const Body& body) {
  if (shared)
    workers.parallel(jobs, 1, body);
  else if (jobs > 0)
    body(0, jobs);
}

// Sums of products, in four lanes.
float dot(const float* a, const float* b, std::size_t n) {
  float lane[4] = {};
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (std::size_t j = 0; j < 4; ++j) lane[j] += a[i + j] * b[i + j];
  for (; i < n; ++i) lane[0] += a[i] * b[i];
  return lane[0] + lane[1] + (lane[2] + lane[3]);
}

template <typename T>
void grow(std::vector<T>* to, std::size_t size) {
  if (to->size() < size) to->resize(size);
}

// Where the new ones begin.
float* grow_by(std::size_t count, std::vector<float>* to) {
  to->resize(to->size() + count);
  return to->data() + (to->size() - count);
}

// ORs `count` bits of `from`, from bit `at` on, into `to`, from bit `into` on.
void add_bits(const RowSet* from, std::size_t at, std::size_t count, RowSet* to, std::size_t into) {
  for (std::size_t i = 0; i < count;) {
    const std::size_t low = (at + i) % kBlockRows, shift = (into + i) % kBlockRows;
    const std::size_t bits = std::min({count - i, kBlockRows - low, kBlockRows - shift});
    const RowSet set = from[(at + i) / kBlockRows] >> low & first_rows(static_cast<int>(bits));
    to[(into + i) / kBlockRows] |= set << shift;
    i += bits;
  }
}

std::size_t words_of(std::size_t bits) { return (bits + kBlockRows - 1) / kBlockRows; }
bool has(const std::vector<RowSet>& set, std::size_t i) {
  return set[i / kBlockRows] >> i % kBlockRows & 1;
}

}  // namespace

void SketchSelector::Units::grow(std::uint32_t heads) {
  for (std::vector<float>* of : {&score, &weight, &rating}) thermocline::grow(of, count * heads);
  for (std::vector<float>* of : {&size, &mass}) thermocline::grow(of, count);
  for (std::vector<float>* of : {&beside, &share, &rating_share}) thermocline::grow(of, heads);
  thermocline::grow(&shift, heads + kSketchGroup);
}

// What does not depend on the query.
void SketchSelector::lay_out(HeadShape shape, const ListQuery& list, Board* board) const {
  std::uint64_t rows = 0;
  board->clusters = board->groups = 0;
  board->rows = board->real_rows = 0;
  board->stretches.clear();
  board->indexes.clear();
  std::size_t sets = 0;
  for (const Run& run : list.runs) {
    const auto* index = dynamic_cast<const SketchIndex*>(run.index.get());
    board->indexes.push_back(index);
    if (!index) continue;
    TL_CHECK(run.summaries && index->rows() == run.rows->rows &&
             index->clusters() + index->groups() == run.summaries->rows);
    rows += index->rows();
    board->clusters += index->clusters();
    board->groups += index->groups();
    sets += run.rows->blocks();
  }
  double wanted = options_.share * list.length;
  if (options_.most_rows > 0) wanted = std::min<double>(wanted, options_.most_rows);
  const double selected = std::max(0.0, wanted - list.steady_rows);
  board->budget = std::max(options_.min_rows, static_cast<std::uint32_t>(selected));
  const double coded = std::max(0.0, options_.coded * list.length - list.steady_rows);
  board->coded_budget = std::max(board->budget, static_cast<std::uint32_t>(coded));
  board->sealed_rows = rows;
  board->everything = board->budget >= rows;
  board->bytes = 0;
  if (board->everything) return;
  const std::size_t laid_out = rows + kSketchGroup * list.runs.size();
  grow(&board->weight, laid_out * shape.heads);
  grow(&board->mass, laid_out);
  board->sets.assign(sets, 0);
  if (codes_values()) board->coded.assign(sets, 0);
}

void SketchSelector::prepare_queries(HeadShape shape, const ListQuery& list, Board* board) const {
  grow(&board->rotated, shape.key_dim);
  grow(&board->query_code, std::size_t{shape.heads} * shape.key_dim);
  grow(&board->queries, shape.heads);
  grow(&board->reach, shape.heads);
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    const float* query = list.query + std::size_t{h} * shape.key_dim;
    board->queries[h] = cpu_.sketch.prepare(query, shape.key_dim, board->rotated.data(),
                                            board->query_code.data() + h * shape.key_dim);
    board->reach[h] =
        static_cast<float>(options_.reach) * std::sqrt(dot(query, query, shape.key_dim));
  }
}

// The scores of `count` of an index's means, to out [heads][stride].
void SketchSelector::score(HeadShape shape, const ListQuery& list, const SketchIndex& index,
                           std::uint32_t first, std::uint32_t count, float* out,
                           std::size_t stride) const {
  const std::size_t mean_bytes = index.mean_bytes();
  cpu_.sketch.dot_rows(SketchIndex::kMeanFormat, index.means(list.head) + first * mean_bytes,
                       mean_bytes, count, shape.key_dim, list.query, static_cast<int>(shape.heads),
                       out, stride);
}

// Each unit's mass a row, as its mean estimates it, summed over the query heads. Scores are taken
// relative to the best unit's from here on.
void SketchSelector::weigh(HeadShape shape, const ListQuery& list, Units* units) const {
  const std::size_t n = units->count;
  for (std::size_t u = 0; u < n; ++u)
    if (units->size[u] == 0.0f)  // its mean is nobody's
      for (std::uint32_t h = 0; h < shape.heads; ++h) units->score[h * n + u] = kNone;
  std::copy_n(units->score.data(), n * shape.heads, units->weight.data());
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    float* weight = units->weight.data() + h * n;
    float ignored = 0;
    cpu_.sketch.weigh(weight, n, &units->shift[h], &ignored);
    const AttnState steady = steady_of(list, h);
    units->beside[h] =
        steady.sum > 0.0f
            ? steady.sum * std::exp(std::min(steady.max - units->shift[h], kSketchMostAbove))
            : 0.0f;
    units->share[h] = 1.0f / (units->beside[h] + dot(weight, units->size.data(), n));
  }
  for (std::uint32_t h = 0; h < kSketchGroup; ++h) units->shift[shape.heads + h] = units->shift[h];
  cpu_.sketch.add_heads(units->weight.data(), n, n, units->share.data(),
                        static_cast<int>(shape.heads), units->mass.data());
}

// How much mass a unit's best row may have, summed over the query heads: a row's score strays from
// its unit's, by so much the more as its residual is longer. First of `count` units from `at` on,
// as scores.
void SketchSelector::rate(HeadShape shape, const Board& board, const float* spread,
                          std::size_t count, std::size_t at, Units* units) const {
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    const float by = board.reach[h];
    const float* score = units->score.data() + h * units->count + at;
    float* best = units->rating.data() + h * units->count + at;
    for (std::size_t c = 0; c < count; ++c) best[c] = score[c] + by * spread[c];
  }
}

// Then, of the first `count` units, as masses, to the first head's.
void SketchSelector::add_ratings(HeadShape shape, std::size_t count, Units* units) const {
  float* rating = units->rating.data();
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    float max = 0, ignored = 0;
    cpu_.sketch.weigh(rating + h * units->count, count, &max, &ignored);
    units->rating_share[h] =
        units->share[h] * std::exp(std::min(max - units->shift[h], kSketchMostAbove));
  }
  cpu_.sketch.add_heads(rating, count, units->count, units->rating_share.data(),
                        static_cast<int>(shape.heads), rating);
}

// The clusters that are scored: all of them, or those of the best groups.
void SketchSelector::find_patches(HeadShape shape, const ListQuery& list, Board* board) const {
  board->patches.clear();
  board->lent.clear();
  const double wanted = std::max<double>(options_.means, 2 * candidates(*board) / options_.cluster);
  board->grouped = 2 * wanted < static_cast<double>(board->clusters);
  if (board->grouped) {
    rate_groups(shape, list, board);
    const double share = wanted / static_cast<double>(board->clusters);
    board->taken_groups.resize(words_of(board->groups));
    top_rows(cpu_.topk, {board->group.rating.data(), board->groups},
             static_cast<std::size_t>(std::ceil(share * static_cast<double>(board->groups))),
             &board->top, board->taken_groups);
  }
  std::size_t at = 0;  // groups of the runs before
  for (std::uint32_t r = 0; r < list.runs.size(); ++r) {
    const SketchIndex* index = board->indexes[r];
    if (!index) continue;
    if (board->grouped && index->groups() > 0)
      add_patches(r, *index, list.head, at, board);
    else
      board->patches.push_back({r, 0, index->clusters()});
    at += index->groups();
  }
  board->looked_at = 0;
  for (Patch& patch : board->patches) {
    patch.at = board->looked_at;
    board->looked_at += patch.clusters();
  }
}

void SketchSelector::rate_groups(HeadShape shape, const ListQuery& list, Board* board) const {
  Units& group = board->group;
  group.count = board->groups;
  group.grow(shape.heads);
  std::size_t at = 0;
  for (const SketchIndex* index : board->indexes) {
    if (!index) continue;
    score(shape, list, *index, index->clusters(), index->groups(), group.score.data() + at,
          group.count);
    const std::span<const std::uint16_t> starts = index->starts(list.head);
    const std::span<const std::uint16_t> groups = index->group_starts(list.head);
    for (std::uint32_t g = 0; g < index->groups(); ++g)
      group.size[at + g] = static_cast<float>(starts[groups[g + 1]] - starts[groups[g]]);
    at += index->groups();
  }
  weigh(shape, list, &group);
  at = 0;
  for (const SketchIndex* index : board->indexes) {
    if (!index) continue;
    rate(shape, *board, index->spreads(list.head).data() + index->clusters(), index->groups(), at,
         &group);
    at += index->groups();
  }
  add_ratings(shape, group.count, &group);
}

// The clusters of a run's groups that were taken, and of the groups beside them as many as have
// rows in the same sixteens: those are looked at whole.
void SketchSelector::add_patches(std::uint32_t run, const SketchIndex& index, std::uint32_t head,
                                 std::size_t at, Board* board) {
  const std::span<const std::uint16_t> starts = index.starts(head);
  const std::span<const std::uint16_t> groups = index.group_starts(head);
  for (std::uint32_t g = 0; g < index.groups(); ++g) {
    if (!has(board->taken_groups, at + g) || groups[g] == groups[g + 1]) continue;
    std::uint32_t first = groups[g], last = groups[g + 1];
    const std::uint32_t begin = starts[first] / kSketchGroup * kSketchGroup;
    const std::uint32_t end = std::min(groups_of(starts[last]) * kSketchGroup, index.rows());
    while (starts[first] > begin) --first;
    while (starts[last] < end) ++last;
    if (!board->patches.empty() && board->patches.back().run == run &&
        first <= board->patches.back().last)
      board->patches.back().last = std::max(board->patches.back().last, last);
    else
      board->patches.push_back({run, first, last});
  }
}

// Of each group the rows that are in no patch; and the clusters that patches have of groups that
// were not taken.
void SketchSelector::leave_groups(const ListQuery& list, Board* board) const {
  std::size_t p = 0, at = 0;
  float* left = board->unit.size.data() + board->looked_at;
  for (std::uint32_t r = 0; r < list.runs.size(); ++r) {
    const SketchIndex* index = board->indexes[r];
    if (!index) continue;
    const std::span<const std::uint16_t> starts = index->starts(list.head);
    const std::span<const std::uint16_t> groups = index->group_starts(list.head);
    const auto in_run = [&](std::size_t i) {
      return i < board->patches.size() && board->patches[i].run == r;
    };
    for (std::uint32_t g = 0; g < index->groups(); ++g, ++at) {
      const std::uint32_t begin = groups[g], end = groups[g + 1];
      std::uint32_t rows = starts[end] - starts[begin];
      while (in_run(p) && board->patches[p].last <= begin) ++p;
      for (std::size_t q = p; in_run(q) && board->patches[q].first < end; ++q) {
        const Patch& patch = board->patches[q];
        const std::uint32_t first = std::max(begin, patch.first), last = std::min(end, patch.last);
        rows -= starts[last] - starts[first];
        if (has(board->taken_groups, at)) continue;
        for (std::uint32_t c = first; c < last; ++c)
          board->lent.push_back(static_cast<std::uint32_t>(patch.at + (c - patch.first)));
      }
      left[at] = static_cast<float>(rows);
    }
    while (in_run(p)) ++p;
  }
}

void SketchSelector::score_units(HeadShape shape, const ListQuery& list, const Workers& workers,
                                 Board* board) const {
  Units& unit = board->unit;
  unit.count = board->looked_at + (board->grouped ? board->groups : 0);
  unit.grow(shape.heads);
  grow(&board->unread, unit.count);
  if (codes_values()) {
    board->coded_weight.assign(unit.count * shape.heads, 0.0f);
    board->has_coded.assign(words_of(unit.count), 0);
  }
  const std::size_t patches = board->patches.size();
  spread((patches + kJobPatches - 1) / kJobPatches, workers, board->looked_at >= kSharedClusters,
         [&](std::size_t from, std::size_t to) {
           for (std::size_t p = from * kJobPatches; p < std::min(to * kJobPatches, patches); ++p) {
             const Patch& patch = board->patches[p];
             const SketchIndex& index = *board->indexes[patch.run];
             score(shape, list, index, patch.first, patch.clusters(), unit.score.data() + patch.at,
                   unit.count);
             const std::uint16_t* starts = index.starts(list.head).data() + patch.first;
             float* size = unit.size.data() + patch.at;
             for (std::uint32_t c = 0; c < patch.clusters(); ++c)
               size[c] = static_cast<float>(starts[c + 1] - starts[c]);
           }
         });
  if (board->grouped) {
    for (std::uint32_t h = 0; h < shape.heads; ++h)
      std::copy_n(board->group.score.data() + h * board->groups, board->groups,
                  unit.score.data() + h * unit.count + board->looked_at);
    leave_groups(list, board);
  }
  weigh(shape, list, &unit);
}

void SketchSelector::rate_clusters(HeadShape shape, const ListQuery& list, Board* board) const {
  for (const Patch& patch : board->patches)
    rate(shape, *board, board->indexes[patch.run]->spreads(list.head).data() + patch.first,
         patch.clusters(), patch.at, &board->unit);
  add_ratings(shape, board->looked_at, &board->unit);
  for (const std::uint32_t cluster : board->lent) board->unit.rating[cluster] = kNoRow;
}

// Puts whole sixteens of a patch's rows on the board, from `first` on, a row of cluster `cluster`
// of the patch.
void SketchSelector::look_at(std::uint32_t patch, std::uint32_t head, std::uint32_t first,
                             std::uint32_t end, std::uint32_t cluster, Board* board) {
  const Patch& of = board->patches[patch];
  const SketchIndex& index = *board->indexes[of.run];
  const std::uint16_t* starts = index.starts(head).data() + of.first;
  end = groups_of(end) * kSketchGroup;
  for (; first < end; first += kJobRows) {
    while (starts[cluster + 1] <= first) ++cluster;
    const std::uint32_t last = std::min(end, first + kJobRows);
    board->stretches.push_back({patch, cluster, first, std::min(last, index.rows()) - first,
                                static_cast<std::uint32_t>(board->rows)});
    board->rows += last - first;
    board->real_rows += board->stretches.back().count;
  }
}

// Clusters lie anywhere in the sixteens of rows that a look takes whole: those that hold a third of
// the rows touch most sixteens, and one look at everything in order costs less.
bool SketchSelector::looks_at_all(const Board& board) const {
  return 3 * candidates(board) >= static_cast<double>(board.sealed_rows);
}

double SketchSelector::candidates(const Board& board) const {
  return std::max<double>(options_.candidates * board.budget, options_.least_candidates);
}

void SketchSelector::look_at_all(const ListQuery& list, Board* board) const {
  for (std::uint32_t p = 0; p < board->patches.size(); ++p)
    look_at(p, list.head, 0, board->indexes[board->patches[p].run]->rows(), 0, board);
}

// The clusters whose rows are worth a look: the best rated, as many as hold the candidates.
void SketchSelector::look_at_best(const ListQuery& list, Board* board) const {
  const double wanted = candidates(*board) / options_.cluster;
  const auto most = static_cast<std::size_t>(
      std::min<double>(std::ceil(wanted), static_cast<double>(board->looked_at)));
  board->taken.resize(words_of(board->looked_at));
  top_rows(cpu_.topk, {board->unit.rating.data(), board->looked_at}, most, &board->top,
           board->taken);
  for (std::uint32_t p = 0; p < board->patches.size(); ++p) {
    const Patch& patch = board->patches[p];
    const std::uint16_t* starts = board->indexes[patch.run]->starts(list.head).data() + patch.first;
    std::uint32_t from = 0, to = 0, from_cluster = 0;  // the stretch at hand, in sixteens
    const auto close = [&] {
      look_at(p, list.head, from * kSketchGroup, to * kSketchGroup, from_cluster, board);
    };
    const std::size_t end = patch.at + patch.clusters();
    for (std::size_t word = patch.at / kBlockRows; word < words_of(end); ++word) {
      const std::size_t begin = word * kBlockRows;
      RowSet left = board->taken[word];
      if (begin < patch.at) left &= ~first_rows(static_cast<int>(patch.at - begin));
      if (end < begin + kBlockRows) left &= first_rows(static_cast<int>(end - begin));
      for (; left != 0; left &= left - 1) {
        const auto c = static_cast<std::uint32_t>(
            begin + static_cast<std::size_t>(std::countr_zero(left)) - patch.at);
        if (starts[c] == starts[c + 1]) continue;
        const std::uint32_t first = starts[c] / kSketchGroup;
        if (first > to || from == to) {
          close();
          from = first;
          from_cluster = c;
          while (starts[from_cluster] > first * kSketchGroup) --from_cluster;
        }
        to = groups_of(starts[c + 1]);
      }
    }
    close();
  }
}

// The rows of clusters that no stretch covers: they have their clusters' weight each.
void SketchSelector::count_uncovered(const ListQuery& list, Board* board) const {
  for (const Stretch& stretch : board->stretches) {
    const Patch& patch = board->patches[stretch.patch];
    const std::uint16_t* starts = board->indexes[patch.run]->starts(list.head).data() + patch.first;
    float* left = board->unit.size.data() + patch.at;
    const std::uint32_t end = stretch.first + stretch.count;
    for (std::uint32_t c = stretch.cluster; c < patch.clusters() && starts[c] < end; ++c)
      left[c] -= static_cast<float>(std::min<std::uint32_t>(starts[c + 1], end) -
                                    std::max<std::uint32_t>(starts[c], stretch.first));
  }
}

// Cuts the stretches into jobs of about kJobRows.
void SketchSelector::lay_out_jobs(HeadShape shape, Board* board) const {
  board->jobs.clear();
  std::uint32_t rows = 0;
  for (std::uint32_t s = 0; s < board->stretches.size(); ++s) {
    if (s == 0 || rows + board->stretches[s].count > kJobRows) {
      board->jobs.push_back(s);
      rows = 0;
    }
    rows += board->stretches[s].count;
  }
  board->job_sum.assign(board->jobs.size() * shape.heads, 0.0f);
  board->jobs.push_back(static_cast<std::uint32_t>(board->stretches.size()));
}

// Asks for the codes of a stretch, or of the beginning of a long one: stretches are too short for
// the processor to see where they lead.
void SketchSelector::fetch(HeadShape shape, std::uint32_t head, const Stretch& stretch,
                           const Board& board) {
  constexpr std::size_t kLine = 64, kMost = 1024;
  const SketchIndex& index = *board.indexes[board.patches[stretch.patch].run];
  const std::size_t row_bytes = sketch_row_bytes(index.bits(), shape.key_dim);
  const std::uint8_t* codes = index.codes(head) + stretch.first * row_bytes;
  const f16* scales = index.scales(head) + stretch.first;
  const std::size_t bytes = std::min<std::size_t>(stretch.count * row_bytes, kMost);
  for (std::size_t i = 0; i < bytes; i += kLine) __builtin_prefetch(codes + i);
  __builtin_prefetch(scales);
  __builtin_prefetch(scales + kLine / sizeof(f16));
}

void SketchSelector::weigh_rows(HeadShape shape, const ListQuery& list, std::size_t job,
                                Board* board) const {
  constexpr std::uint32_t kAhead = 4;
  for (std::uint32_t s = board->jobs[job]; s < board->jobs[job + 1]; ++s)
    if (s < board->jobs[job] + kAhead) fetch(shape, list.head, board->stretches[s], *board);
  for (std::uint32_t s = board->jobs[job]; s < board->jobs[job + 1]; ++s) {
    const Stretch& stretch = board->stretches[s];
    if (s + kAhead < board->jobs[job + 1])
      fetch(shape, list.head, board->stretches[s + kAhead], *board);
    const Patch& patch = board->patches[stretch.patch];
    const SketchIndex& index = *board->indexes[patch.run];
    const SketchScan scan{.bits = index.bits(),
                          .codes = index.codes(list.head),
                          .scales = index.scales(list.head),
                          .starts = index.starts(list.head).data() + patch.first,
                          .key_dim = shape.key_dim,
                          .heads = static_cast<int>(shape.heads),
                          .queries = board->queries.data(),
                          .cluster_score = board->unit.score.data() + patch.at,
                          .cluster_stride = board->unit.count,
                          .shift = board->unit.shift.data()};
    cpu_.sketch.weigh_rows(scan, stretch.first, stretch.count, stretch.cluster,
                           board->weight.data() + stretch.at, board->rows,
                           board->job_sum.data() + job * shape.heads);
  }
}

// The mass of each row, summed over the query heads.
void SketchSelector::add_heads(HeadShape shape, Board* board) const {
  Units& unit = board->unit;
  const std::size_t jobs = board->jobs.size() - 1;
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    double sum =
        unit.beside[h] + dot(unit.weight.data() + h * unit.count, unit.size.data(), unit.count);
    for (std::size_t j = 0; j < jobs; ++j) sum += board->job_sum[j * shape.heads + h];
    unit.share[h] = sum > 0.0 ? static_cast<float>(1.0 / sum) : 0.0f;
  }
  cpu_.sketch.add_heads(board->weight.data(), board->rows, board->rows, unit.share.data(),
                        static_cast<int>(shape.heads), board->mass.data());
  for (const Stretch& stretch : board->stretches)
    std::fill(board->mass.data() + stretch.at + stretch.count,
              board->mass.data() + stretch.at + groups_of(stretch.count) * kSketchGroup, kNoRow);
}

// The budget's best rows, from the board back to where they are in their runs.
void SketchSelector::take_rows(const ListQuery& list, std::uint32_t budget, Board* board,
                               std::vector<RowSet>* into) const {
  board->taken.resize((board->rows + kBlockRows - 1) / kBlockRows);
  top_rows(cpu_.topk, {board->mass.data(), board->rows}, std::min(budget, board->real_rows),
           &board->top, board->taken);
  RowSet* sets = into->data();
  std::uint32_t run = 0;
  for (const Stretch& stretch : board->stretches) {
    for (; run < board->patches[stretch.patch].run; ++run)
      if (board->indexes[run]) sets += list.runs[run].rows->blocks();
    for (std::uint32_t g = 0; g < groups_of(stretch.count); ++g) {
      const std::uint32_t on_board = stretch.at + g * kSketchGroup;
      const std::uint32_t row = stretch.first + g * kSketchGroup;
      const RowSet group =
          board->taken[on_board / kBlockRows] >> on_board % kBlockRows & first_rows(kSketchGroup);
      sets[row / kBlockRows] |= group << row % kBlockRows;
    }
  }
}

void SketchSelector::write_everything(const ListQuery& list, ReadList* out) {
  for (std::uint32_t run = 0; run < list.runs.size(); ++run)
    out->reads.push_back({.run = run, .everything = true});
}

void SketchSelector::write_rows(const ListQuery& list, const Board& board, ReadList* out) const {
  const RowSet* sets = board.sets.data();
  for (std::uint32_t r = 0; r < list.runs.size(); ++r) {
    if (!board.indexes[r]) {
      out->reads.push_back({.run = r, .everything = true});
      continue;
    }
    Read read{.run = r, .first = static_cast<std::uint32_t>(out->picks.size())};
    const std::uint32_t blocks = list.runs[r].rows->blocks();
    for (std::uint32_t b = 0; b < blocks; ++b)
      if (sets[b] != 0) out->picks.push_back({b, sets[b]});
    sets += blocks;
    read.last = static_cast<std::uint32_t>(out->picks.size());
    if (read.first != read.last) out->reads.push_back(read);
  }
}

// Rows that are not worth a read but worth their codes: what their values differ by from their
// clusters' means. The means come with the clusters' summaries, whose weight these rows' is part
// of.
void SketchSelector::write_codes(std::uint32_t heads, const ListQuery& list, Board* board,
                                 ReadList* out) const {
  RowSet* coded = board->coded.data();
  const RowSet* read_already = board->sets.data();
  const Units& unit = board->unit;
  std::size_t s = 0;
  for (std::uint32_t r = 0; r < list.runs.size(); ++r) {
    const SketchIndex* index = board->indexes[r];
    if (!index) continue;
    const std::uint32_t blocks = list.runs[r].rows->blocks();
    Read read{.run = r,
              .form = Form::codes,
              .first = static_cast<std::uint32_t>(out->picks.size()),
              .weights_a_row = heads,
              .scored = true,
              .residual = true,
              .first_weight = static_cast<std::uint32_t>(out->log_weight.size())};
    std::size_t rows = 0;
    for (std::uint32_t b = 0; b < blocks; ++b) {
      coded[b] &= ~read_already[b];
      if (coded[b] == 0) continue;
      out->picks.push_back({b, coded[b]});
      rows += static_cast<std::size_t>(count(coded[b]));
    }
    float* to = grow_by(rows * heads, &out->log_weight);
    for (; s < board->stretches.size(); ++s) {
      const Stretch& stretch = board->stretches[s];
      const Patch& patch = board->patches[stretch.patch];
      if (patch.run != r) break;
      const std::uint16_t* starts = index->starts(list.head).data() + patch.first;
      std::uint32_t cluster = stretch.cluster;
      for (std::uint32_t i = 0; i < stretch.count; i += kSketchGroup) {
        const std::uint32_t row = stretch.first + i;
        RowSet left = coded[row / kBlockRows] >> row % kBlockRows & first_rows(kSketchGroup);
        for (; left != 0; left &= left - 1) {
          const auto in_group = static_cast<std::uint32_t>(std::countr_zero(left));
          while (starts[cluster + 1] <= row + in_group) ++cluster;
          const std::size_t u = patch.at + cluster;
          board->has_coded[u / kBlockRows] |= RowSet{1} << u % kBlockRows;
          const float* weight = board->weight.data() + stretch.at + i + in_group;
          float* of_cluster = board->coded_weight.data() + u;
          for (std::uint32_t h = 0; h < heads; ++h) {
            *to++ = *weight;
            *of_cluster += *weight;
            weight += board->rows;
            of_cluster += unit.count;
          }
        }
      }
    }
    coded += blocks;
    read_already += blocks;
    read.last = static_cast<std::uint32_t>(out->picks.size());
    if (read.first != read.last) out->reads.push_back(read);
    board->bytes += rows * list.runs[r].codes->layout.bytes();
  }
}

// The summaries of a run's clusters that are estimated: those with mass in unread rows, as the mean
// estimates it, and those with coded ones. From a run's patches, whose first is `patch`, and its
// groups, whose first is unit `group`.
void SketchSelector::find_estimated(std::uint32_t run, const SketchIndex& index, std::uint32_t head,
                                    const RowSet* sets, std::size_t patch, std::size_t group,
                                    Board* board) const {
  Units& unit = board->unit;
  board->estimated.assign(words_of(index.clusters() + index.groups()), 0);
  for (; patch < board->patches.size() && board->patches[patch].run == run; ++patch) {
    const Patch& of = board->patches[patch];
    grow(&board->taken, words_of(of.clusters()));
    cpu_.sketch.find_unread(sets, index.starts(head).data() + of.first, unit.mass.data() + of.at,
                            of.clusters(), kNegligible, board->unread.data() + of.at,
                            board->taken.data());
    add_bits(board->taken.data(), 0, of.clusters(), board->estimated.data(), of.first);
    if (codes_values())
      add_bits(board->has_coded.data(), of.at, of.clusters(), board->estimated.data(), of.first);
  }
  for (std::uint32_t g = 0; board->grouped && g < index.groups(); ++g) {
    const float left = unit.size[group + g];
    board->unread[group + g] = static_cast<std::uint16_t>(left);
    const std::size_t summary = index.clusters() + g;
    if (left > 0.0f && unit.mass[group + g] * left >= kNegligible)
      board->estimated[summary / kBlockRows] |= RowSet{1} << summary % kBlockRows;
  }
}

// A summary row is weighed by its unread rows, as its mean estimates them, and by its coded ones,
// as their codes do.
void SketchSelector::write_summaries(std::uint32_t heads, const ListQuery& list, Board* board,
                                     ReadList* out) const {
  if (codes_values())
    for (std::size_t b = 0; b < board->sets.size(); ++b) board->coded[b] |= board->sets[b];
  const RowSet* sets = codes_values() ? board->coded.data() : board->sets.data();
  const Units& unit = board->unit;
  std::size_t patch = 0, group = board->looked_at;
  for (std::uint32_t r = 0; r < list.runs.size(); ++r) {
    const Run& run = list.runs[r];
    const SketchIndex* index = board->indexes[r];
    if (!index) continue;
    find_estimated(r, *index, list.head, sets, patch, group, board);
    Read read{.run = r,
              .form = Form::summaries,
              .first = static_cast<std::uint32_t>(out->picks.size()),
              .weights_a_row = heads,
              .scored = true,
              .first_weight = static_cast<std::uint32_t>(out->log_weight.size())};
    std::size_t summaries = 0;
    for (std::uint32_t block = 0; block < board->estimated.size(); ++block) {
      if (board->estimated[block] == 0) continue;
      out->picks.push_back({block, board->estimated[block]});
      summaries += static_cast<std::size_t>(count(board->estimated[block]));
    }
    float* to = grow_by(summaries * heads, &out->log_weight);
    for (std::size_t p = read.first; p < out->picks.size(); ++p) {
      const std::uint32_t first = out->picks[p].block * kBlockRows;
      for (RowSet left = out->picks[p].rows; left != 0; left &= left - 1) {
        const std::uint32_t c = first + static_cast<std::uint32_t>(std::countr_zero(left));
        const bool of_group = c >= index->clusters();
        while (!of_group && board->patches[patch].last <= c) ++patch;
        std::size_t u = of_group ? group + (c - index->clusters())
                                 : board->patches[patch].at + (c - board->patches[patch].first);
        const auto unread = static_cast<float>(board->unread[u]);
        for (std::uint32_t h = 0; h < heads; ++h, u += unit.count)
          *to++ = unread * unit.weight[u] + (codes_values() ? board->coded_weight[u] : 0.0f);
      }
    }
    while (patch < board->patches.size() && board->patches[patch].run == r) ++patch;
    group += board->grouped ? index->groups() : 0;
    sets += run.rows->blocks();
    read.last = static_cast<std::uint32_t>(out->picks.size());
    if (read.first != read.last) out->reads.push_back(read);
    board->bytes += summaries * run.summaries->layout.value_bytes;
  }
}

void SketchSelector::choose_list(HeadShape shape, const ListQuery& list, const Workers& workers,
                                 Board* board, ReadList* out) const {
  out->clear();
  lay_out(shape, list, board);
  if (board->everything) {
    write_everything(list, out);
    return;
  }
  prepare_queries(shape, list, board);
  find_patches(shape, list, board);
  score_units(shape, list, workers, board);
  if (looks_at_all(*board)) {
    look_at_all(list, board);
  } else {
    rate_clusters(shape, list, board);
    look_at_best(list, board);
  }
  count_uncovered(list, board);
  lay_out_jobs(shape, board);
  spread(board->jobs.size() - 1, workers, board->rows >= kSharedRows,
         [&](std::size_t first, std::size_t last) {
           for (std::size_t j = first; j < last; ++j) weigh_rows(shape, list, j, board);
         });
  add_heads(shape, board);
  take_rows(list, board->budget, board, &board->sets);
  write_rows(list, *board, out);
  if (codes_values()) {
    take_rows(list, board->coded_budget, board, &board->coded);
    write_codes(shape.heads, list, board, out);
  }
  write_summaries(shape.heads, list, board, out);
  cpu_.sketch.log_weights(out->log_weight.data(), out->log_weight.size() / shape.heads,
                          board->unit.shift.data(), static_cast<int>(shape.heads));
  board->bytes += board->unit.count * row_bytes(SketchIndex::kMeanFormat, shape.key_dim) +
                  board->rows * (sketch_row_bytes(static_cast<int>(options_.bits), shape.key_dim) +
                                 sizeof(f16));
}

Result<Chosen> SketchSelector::choose(const LayerQuery& query, const Workers& workers,
                                      std::span<ReadList> out) {
  const std::span<const ListQuery> lists = query.lists;
  TL_CHECK(lists.size() == out.size());
  std::atomic<std::uint64_t> index_bytes{0};
  workers.parallel(lists.size(), 1, [&](std::size_t first, std::size_t last) {
    Board& board = boards_[Workers::slot()];
    for (std::size_t l = first; l < last; ++l) {
      choose_list(query.shape, lists[l], workers, &board, &out[l]);
      index_bytes.fetch_add(board.bytes, std::memory_order_relaxed);
    }
  });
  return Chosen{index_bytes.load()};
}

}  // namespace thermocline
