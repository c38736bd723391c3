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
constexpr std::uint32_t kJobClusters = 64;
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

}  // namespace

// What does not depend on the query.
void SketchSelector::lay_out(HeadShape shape, const ListQuery& list, Board* board) const {
  std::uint64_t rows = 0;
  board->clusters = 0;
  board->rows = board->real_rows = 0;
  board->stretches.clear();
  board->indexes.clear();
  std::size_t sets = 0, cluster_words = 0;
  for (const Run& run : list.runs) {
    const auto* index = dynamic_cast<const SketchIndex*>(run.index.get());
    board->indexes.push_back(index);
    if (!index) continue;
    TL_CHECK(run.summaries && index->rows() == run.rows->rows &&
             index->clusters() == run.summaries->rows);
    rows += index->rows();
    board->clusters += index->clusters();
    sets += run.rows->blocks();
    cluster_words += run.summaries->blocks();
  }
  const double selected = std::max(0.0, options_.share * list.length - list.steady_rows);
  board->budget = std::max(options_.min_rows, static_cast<std::uint32_t>(selected));
  const double coded = std::max(0.0, options_.coded * list.length - list.steady_rows);
  board->coded_budget = std::max(board->budget, static_cast<std::uint32_t>(coded));
  board->sealed_rows = rows;
  board->everything = board->budget >= rows;
  board->bytes = 0;
  if (board->everything) return;
  grow(&board->cluster_score, board->clusters * shape.heads);
  grow(&board->cluster_weight, board->clusters * shape.heads);
  grow(&board->rating, board->clusters * shape.heads);
  grow(&board->rating_share, shape.heads);
  grow(&board->cluster_size, board->clusters);
  grow(&board->cluster_mass, board->clusters);
  grow(&board->unread, board->clusters);
  const std::size_t laid_out = rows + kSketchGroup * list.runs.size();
  grow(&board->weight, laid_out * shape.heads);
  grow(&board->mass, laid_out);
  board->sets.assign(sets, 0);
  if (codes_values()) {
    grow(&board->score, laid_out * shape.heads);
    board->coded.assign(sets, 0);
    board->coded_weight.assign(board->clusters * shape.heads, 0.0f);
    board->has_coded.assign(cluster_words, 0);
  }
  grow(&board->shift, shape.heads);
  grow(&board->beside, shape.heads);
  grow(&board->share, shape.heads);
}

void SketchSelector::prepare_queries(HeadShape shape, const ListQuery& list, Board* board) const {
  grow(&board->rotated, shape.key_dim);
  grow(&board->query_code, std::size_t{shape.heads} * shape.key_dim);
  grow(&board->queries, shape.heads);
  for (std::uint32_t h = 0; h < shape.heads; ++h)
    board->queries[h] =
        prepare_query(list.query + std::size_t{h} * shape.key_dim, shape.key_dim,
                      board->rotated.data(), board->query_code.data() + h * shape.key_dim);
}

void SketchSelector::score_clusters(HeadShape shape, const ListQuery& list, const Workers& workers,
                                    Board* board) const {
  std::size_t at = 0;
  for (const SketchIndex* index : board->indexes) {
    if (!index) continue;
    const std::size_t mean_bytes = index->mean_bytes();
    const std::byte* means = index->means(list.head);
    const std::size_t jobs = (index->clusters() + kJobClusters - 1) / kJobClusters;
    spread(jobs, workers, board->clusters >= kSharedClusters,
           [&](std::size_t from, std::size_t to) {
             const std::size_t first = from * kJobClusters;
             const std::size_t count =
                 std::min<std::size_t>(to * kJobClusters, index->clusters()) - first;
             cpu_.sketch.dot_rows(SketchIndex::kMeanFormat, means + first * mean_bytes, mean_bytes,
                                  count, shape.key_dim, list.query, static_cast<int>(shape.heads),
                                  board->cluster_score.data() + at + first, board->clusters);
           });
    const std::span<const std::uint16_t> starts = index->starts(list.head);
    for (std::uint32_t c = 0; c < index->clusters(); ++c) {
      board->cluster_size[at + c] = static_cast<float>(starts[c + 1] - starts[c]);
      if (starts[c] == starts[c + 1])  // its mean is nobody's
        for (std::uint32_t h = 0; h < shape.heads; ++h)
          board->cluster_score[h * board->clusters + at + c] = kNone;
    }
    at += index->clusters();
  }
}

// Each cluster's mass a row, as its mean estimates it, summed over the query heads. Scores are
// taken relative to the best cluster's from here on.
void SketchSelector::weigh_clusters(HeadShape shape, const ListQuery& list, Board* board) const {
  const std::size_t n = board->clusters;
  std::copy_n(board->cluster_score.data(), n * shape.heads, board->cluster_weight.data());
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    float* weight = board->cluster_weight.data() + h * n;
    float ignored = 0;
    cpu_.sketch.weigh(weight, n, &board->shift[h], &ignored);
    const AttnState steady = steady_of(list, h);
    board->beside[h] =
        steady.sum > 0.0f
            ? steady.sum * std::exp(std::min(steady.max - board->shift[h], kSketchMostAbove))
            : 0.0f;
    board->share[h] = 1.0f / (board->beside[h] + dot(weight, board->cluster_size.data(), n));
  }
  cpu_.sketch.add_heads(board->cluster_weight.data(), n, n, board->share.data(),
                        static_cast<int>(shape.heads), board->cluster_mass.data());
}

// How much mass a cluster's best row may have, summed over the query heads: a row's score strays
// from its cluster's, by so much the more as its residual is longer.
void SketchSelector::rate_clusters(HeadShape shape, const ListQuery& list, Board* board) const {
  std::size_t at = 0;
  for (const SketchIndex* index : board->indexes) {
    if (!index) continue;
    const std::span<const float> spread = index->spreads(list.head);
    for (std::uint32_t h = 0; h < shape.heads; ++h) {
      const float* query = list.query + std::size_t{h} * shape.key_dim;
      const float by =
          static_cast<float>(options_.reach) * std::sqrt(dot(query, query, shape.key_dim));
      const float* score = board->cluster_score.data() + h * board->clusters + at;
      float* best = board->rating.data() + h * board->clusters + at;
      for (std::size_t c = 0; c < spread.size(); ++c) best[c] = score[c] + by * spread[c];
    }
    at += spread.size();
  }
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    float max = 0, ignored = 0;
    cpu_.sketch.weigh(board->rating.data() + h * board->clusters, board->clusters, &max, &ignored);
    board->rating_share[h] =
        board->share[h] * std::exp(std::min(max - board->shift[h], kSketchMostAbove));
  }
  float* rating = board->rating.data();
  cpu_.sketch.add_heads(rating, board->clusters, board->clusters, board->rating_share.data(),
                        static_cast<int>(shape.heads), rating);
}

// Puts whole groups of a run's rows on the board, from `first` on, a row of cluster `cluster`.
void SketchSelector::look_at(std::uint32_t run, const SketchIndex& index, std::uint32_t head,
                             std::uint32_t first, std::uint32_t end, std::uint32_t cluster,
                             Board* board) {
  const std::span<const std::uint16_t> starts = index.starts(head);
  end = groups_of(end) * kSketchGroup;
  for (; first < end; first += kJobRows) {
    while (starts[cluster + 1] <= first) ++cluster;
    const std::uint32_t last = std::min(end, first + kJobRows);
    board->stretches.push_back({run, cluster, first, std::min(last, index.rows()) - first,
                                static_cast<std::uint32_t>(board->rows)});
    board->rows += last - first;
    board->real_rows += board->stretches.back().count;
  }
}

// Clusters lie anywhere in the groups of rows that a look takes whole: those that hold a third of
// the rows touch most groups, and one look at everything in order costs less.
bool SketchSelector::looks_at_all(const Board& board) const {
  return 3 * candidates(board) >= static_cast<double>(board.sealed_rows);
}

double SketchSelector::candidates(const Board& board) const {
  return std::max<double>(options_.candidates * board.budget, options_.least_candidates);
}

void SketchSelector::look_at_all(const ListQuery& list, Board* board) const {
  for (std::uint32_t r = 0; r < list.runs.size(); ++r)
    if (const SketchIndex* index = board->indexes[r])
      look_at(r, *index, list.head, 0, index->rows(), 0, board);
}

// The clusters whose rows are worth a look: the best rated, as many as hold the candidates.
void SketchSelector::look_at_best(const ListQuery& list, Board* board) const {
  const double wanted = candidates(*board) / options_.cluster;
  const auto most = static_cast<std::size_t>(
      std::min<double>(std::ceil(wanted), static_cast<double>(board->clusters)));
  board->taken.resize((board->clusters + kBlockRows - 1) / kBlockRows);
  top_rows(cpu_.topk, {board->rating.data(), board->clusters}, most, &board->top, board->taken);

  std::size_t cluster = 0;
  for (std::uint32_t r = 0; r < list.runs.size(); ++r) {
    const SketchIndex* index = board->indexes[r];
    if (!index) continue;
    const std::span<const std::uint16_t> starts = index->starts(list.head);
    std::uint32_t from = 0, to = 0, from_cluster = 0;  // the stretch at hand, in groups
    const auto close = [&] {
      look_at(r, *index, list.head, from * kSketchGroup, to * kSketchGroup, from_cluster, board);
    };
    for (std::uint32_t c = 0; c < index->clusters(); ++c, ++cluster) {
      if (starts[c] == starts[c + 1] ||
          !(board->taken[cluster / kBlockRows] >> cluster % kBlockRows & 1))
        continue;
      const std::uint32_t first = starts[c] / kSketchGroup;
      if (first > to || from == to) {
        close();
        from = first;
        from_cluster = c;
        while (starts[from_cluster] > first * kSketchGroup) --from_cluster;
      }
      to = groups_of(starts[c + 1]);
    }
    close();
  }
}

// The rows of clusters that no stretch covers: they have their clusters' weight each.
void SketchSelector::count_uncovered(const ListQuery& list, Board* board) const {
  float* left = board->cluster_size.data();
  std::size_t s = 0;
  for (std::uint32_t r = 0; r < list.runs.size(); ++r) {
    const SketchIndex* index = board->indexes[r];
    if (!index) continue;
    const std::span<const std::uint16_t> starts = index->starts(list.head);
    std::uint32_t c = 0;
    for (; s < board->stretches.size() && board->stretches[s].run == r; ++s) {
      const std::uint32_t first = board->stretches[s].first;
      const std::uint32_t end = first + board->stretches[s].count;
      for (c = board->stretches[s].cluster; c < index->clusters() && starts[c] < end; ++c)
        left[c] -= static_cast<float>(std::min<std::uint32_t>(starts[c + 1], end) -
                                      std::max<std::uint32_t>(starts[c], first));
    }
    left += index->clusters();
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
  const SketchIndex& index = *board.indexes[stretch.run];
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
  std::size_t run_clusters = 0;  // before the stretch's run
  std::uint32_t run = 0;
  for (std::uint32_t s = board->jobs[job]; s < board->jobs[job + 1]; ++s) {
    const Stretch& stretch = board->stretches[s];
    if (s + kAhead < board->jobs[job + 1])
      fetch(shape, list.head, board->stretches[s + kAhead], *board);
    for (; run < stretch.run; ++run)
      run_clusters += board->indexes[run] ? board->indexes[run]->clusters() : 0;
    const SketchIndex& index = *board->indexes[stretch.run];
    const SketchScan scan{.bits = index.bits(),
                          .codes = index.codes(list.head),
                          .scales = index.scales(list.head),
                          .starts = index.starts(list.head).data(),
                          .key_dim = shape.key_dim,
                          .heads = static_cast<int>(shape.heads),
                          .queries = board->queries.data(),
                          .cluster_score = board->cluster_score.data() + run_clusters,
                          .cluster_stride = board->clusters,
                          .shift = board->shift.data(),
                          .score = codes_values() ? board->score.data() + stretch.at : nullptr};
    cpu_.sketch.weigh_rows(scan, stretch.first, stretch.count, stretch.cluster,
                           board->weight.data() + stretch.at, board->rows,
                           board->job_sum.data() + job * shape.heads);
  }
}

// The mass of each row, summed over the query heads.
void SketchSelector::add_heads(HeadShape shape, Board* board) const {
  const std::size_t jobs = board->jobs.size() - 1;
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    double sum = board->beside[h] + dot(board->cluster_weight.data() + h * board->clusters,
                                        board->cluster_size.data(), board->clusters);
    for (std::size_t j = 0; j < jobs; ++j) sum += board->job_sum[j * shape.heads + h];
    board->share[h] = sum > 0.0 ? static_cast<float>(1.0 / sum) : 0.0f;
  }
  cpu_.sketch.add_heads(board->weight.data(), board->rows, board->rows, board->share.data(),
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
    for (; run < stretch.run; ++run)
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
  RowSet* has_coded = board->has_coded.data();
  float* of_cluster = board->coded_weight.data();
  const float* weight = board->weight.data();
  const float* score = board->score.data();
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
    for (std::uint32_t b = 0; b < blocks; ++b) {
      coded[b] &= ~read_already[b];
      if (coded[b] != 0) out->picks.push_back({b, coded[b]});
    }
    const std::span<const std::uint16_t> starts = index->starts(list.head);
    for (; s < board->stretches.size() && board->stretches[s].run == r; ++s) {
      const Stretch& stretch = board->stretches[s];
      std::uint32_t cluster = stretch.cluster;
      for (std::uint32_t i = 0; i < stretch.count; ++i) {
        const std::uint32_t row = stretch.first + i;
        if (!(coded[row / kBlockRows] >> row % kBlockRows & 1)) continue;
        while (starts[cluster + 1] <= row) ++cluster;
        has_coded[cluster / kBlockRows] |= RowSet{1} << cluster % kBlockRows;
        for (std::uint32_t h = 0; h < heads; ++h) {
          const std::size_t at = h * board->rows + stretch.at + i;
          out->log_weight.push_back(score[at] + board->shift[h]);
          of_cluster[h * board->clusters + cluster] += weight[at];
        }
      }
    }
    coded += blocks;
    read_already += blocks;
    has_coded += list.runs[r].summaries->blocks();
    of_cluster += index->clusters();
    read.last = static_cast<std::uint32_t>(out->picks.size());
    if (read.first != read.last) out->reads.push_back(read);
    board->bytes +=
        (out->log_weight.size() - read.first_weight) / heads * list.runs[r].codes->layout.bytes();
  }
}

// A cluster's summary row is weighed by its unread rows, as its mean estimates them, and by its
// coded ones, as their codes do.
void SketchSelector::write_summaries(std::uint32_t heads, const ListQuery& list, Board* board,
                                     ReadList* out) const {
  const std::size_t weights_before = out->log_weight.size();
  out->log_weight.resize(weights_before + board->clusters * heads);  // cut at the end
  float* weight = out->log_weight.data() + weights_before;
  if (codes_values())
    for (std::size_t b = 0; b < board->sets.size(); ++b) board->coded[b] |= board->sets[b];
  const RowSet* sets = codes_values() ? board->coded.data() : board->sets.data();
  const RowSet* has_coded = board->has_coded.data();
  std::size_t before = 0;  // clusters of the runs before
  for (std::uint32_t r = 0; r < list.runs.size(); ++r) {
    const Run& run = list.runs[r];
    const SketchIndex* index = board->indexes[r];
    if (!index) continue;
    const float* first_weight = weight;
    grow(&board->taken, run.summaries->blocks());
    cpu_.sketch.find_unread(sets, index->starts(list.head).data(),
                            board->cluster_mass.data() + before, index->clusters(), kNegligible,
                            board->unread.data(), board->taken.data());
    Read read{.run = r,
              .form = Form::summaries,
              .first = static_cast<std::uint32_t>(out->picks.size()),
              .weights_a_row = heads,
              .scored = true,
              .first_weight = static_cast<std::uint32_t>(weight - out->log_weight.data())};
    for (std::uint32_t block = 0; block < run.summaries->blocks(); ++block) {
      const RowSet coded = codes_values() ? has_coded[block] : 0;
      const RowSet estimated = board->taken[block] | coded;
      if (estimated == 0) continue;
      out->picks.push_back({block, estimated});
      for (RowSet left = estimated; left != 0; left &= left - 1) {
        const std::size_t c =
            std::size_t{block} * kBlockRows + static_cast<std::size_t>(std::countr_zero(left));
        const bool has_codes = (coded & left & (~left + 1)) != 0;
        for (std::uint32_t h = 0; h < heads; ++h) {
          const std::size_t at = h * board->clusters + before + c;
          *weight++ = has_codes ? board->shift[h] + std::log(board->coded_weight[at] +
                                                             static_cast<float>(board->unread[c]) *
                                                                 board->cluster_weight[at])
                                : board->cluster_score[at] + log_[board->unread[c]];
        }
      }
    }
    sets += run.rows->blocks();
    has_coded += codes_values() ? run.summaries->blocks() : 0;
    before += index->clusters();
    read.last = static_cast<std::uint32_t>(out->picks.size());
    if (read.first != read.last) out->reads.push_back(read);
    board->bytes += std::uint64_t{index->clusters()} * index->mean_bytes() +
                    static_cast<std::uint64_t>(weight - first_weight) / heads *
                        run.summaries->layout.value_bytes;
  }
  out->log_weight.resize(static_cast<std::size_t>(weight - out->log_weight.data()));
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
  score_clusters(shape, list, workers, board);
  weigh_clusters(shape, list, board);
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
  board->bytes += board->rows *
                  (sketch_row_bytes(static_cast<int>(options_.bits), shape.key_dim) + sizeof(f16));
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
