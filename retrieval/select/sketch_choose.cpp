#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "retrieval/select/sketch.h"

namespace thermocline {
namespace {

// Rows a job: a fixed cut, since the sum of weights is taken job by job.
constexpr std::uint32_t kJobRows = 1024;
constexpr float kNoRow = -1.0f;

const SketchIndex* index_of(const Run& run) {
  return dynamic_cast<const SketchIndex*>(run.index.get());  // null: another method formed it
}

std::size_t padded(std::uint32_t rows) {
  return (std::size_t{rows} + kBlockRows - 1) / kBlockRows * kBlockRows;
}

// Writes `value` to [first, last); may write past `last`, but not to `end` or beyond.
void spread(float value, float* at, std::size_t first, std::size_t last, std::size_t end) {
  constexpr std::size_t kAtOnce = 8;
  std::size_t r = first;
  for (; r < last && r + kAtOnce <= end; r += kAtOnce)
    for (std::size_t i = 0; i < kAtOnce; ++i) at[r + i] = value;
  for (; r < last; ++r) at[r] = value;
}

// Visits the rows of a set of blocks, in order.
template <typename Visit>
void for_each_row(std::span<const RowSet> sets, const Visit& visit) {
  for (std::size_t block = 0; block < sets.size(); ++block)
    for (RowSet left = sets[block]; left != 0; left &= left - 1)
      visit(block * kBlockRows + static_cast<std::size_t>(std::countr_zero(left)));
}

template <typename T>
void grow(std::vector<T>* to, std::size_t size) {
  if (to->size() < size) to->resize(size);
}

}  // namespace

// Where everything goes: lists get boards, boards get jobs.
void SketchSelector::lay_out(HeadShape shape, std::span<const ListQuery> lists,
                             std::size_t threads) {
  grow(&boards_, lists.size());
  jobs_.clear();
  std::size_t floats = 0, sets = 0;
  std::uint32_t most_clusters = 0;
  for (std::uint32_t l = 0; l < lists.size(); ++l) {
    Board& board = boards_[l];
    board = Board{.scores = floats, .first_job = jobs_.size(), .sets = sets};
    std::uint64_t rows = 0;
    for (const Run& run : lists[l].runs) rows += index_of(run) ? run.rows->rows : 0;
    const double share = options_.share * lists[l].length;
    board.budget = std::max(options_.min_rows, static_cast<std::uint32_t>(share));
    board.everything = board.budget >= rows;
    if (!board.everything) {
      for (std::uint32_t r = 0; r < lists[l].runs.size(); ++r) {
        const Run& run = lists[l].runs[r];
        if (!index_of(run)) continue;
        TL_CHECK(run.summaries && index_of(run)->rows() == run.rows->rows &&
                 index_of(run)->clusters() == run.summaries->rows);
        most_clusters = std::max(most_clusters, index_of(run)->clusters());
        for (std::uint32_t first = 0; first < run.rows->rows; first += kJobRows)
          jobs_.push_back(
              {l, r, first, std::min(kJobRows, run.rows->rows - first), board.stride + first});
        board.stride += padded(run.rows->rows);
      }
    }
    board.last_job = jobs_.size();
    floats += board.stride * shape.heads;
    sets += board.stride / kBlockRows;
  }
  grow(&scores_, floats);
  grow(&sets_, sets);
  grow(&job_max_, jobs_.size() * shape.heads);
  grow(&job_sum_, jobs_.size() * shape.heads);
  grow(&slots_, threads);
  for (Slot& slot : slots_) grow(&slot.cluster_scores, std::size_t{most_clusters} * shape.heads);
}

void SketchSelector::prepare(HeadShape shape, std::span<const ListQuery> lists) {
  const std::size_t heads = lists.size() * shape.heads;
  grow(&rotated_, shape.key_dim);
  grow(&query_codes_, heads * shape.key_dim);
  grow(&queries_, heads);
  for (std::size_t i = 0; i < heads; ++i)
    queries_[i] =
        prepare_query(lists[i / shape.heads].query + i % shape.heads * shape.key_dim, shape.key_dim,
                      rotated_.data(), query_codes_.data() + i * shape.key_dim);
}

// Scores a job's rows and turns them into weights below the job's own maximum.
void SketchSelector::score(HeadShape shape, const ListQuery& list, const Job& job,
                           std::size_t job_index, const SummaryRows& summaries, Slot* slot) {
  const Run& run = list.runs[job.run];
  const SketchIndex& index = *index_of(run);
  const Board& board = boards_[job.list];
  const std::span<const std::uint16_t> starts = index.starts(list.head);
  const std::uint32_t end = job.first + job.count;
  // The clusters that have rows here; empty ones do no harm.
  const auto past = std::upper_bound(starts.begin() + 1, starts.end(), job.first);
  const std::size_t from = static_cast<std::size_t>(past - starts.begin()) - 1;
  std::size_t to = from;
  while (to < index.clusters() && starts[to] < end) ++to;

  const RowLayout& layout = run.summaries->layout;
  const std::byte* means = summaries.summaries(*run.summaries, list.head);
  const int heads = static_cast<int>(shape.heads);
  float* cluster_scores = slot->cluster_scores.data();
  cpu_.sketch.exact(means + from * layout.bytes(), layout.bytes(), to - from, shape.key_dim,
                    list.query, heads, cluster_scores, to - from);
  float* scores = scores_.data() + board.scores + job.at;
  for (std::uint32_t h = 0; h < shape.heads; ++h)
    for (std::size_t c = from; c < to; ++c)
      spread(cluster_scores[h * (to - from) + c - from], scores + h * board.stride,
             std::max<std::uint32_t>(starts[c], job.first) - job.first,
             std::min<std::uint32_t>(starts[c + 1], end) - job.first, job.count);
  cpu_.sketch.score(index.codes(list.head), index.scales(list.head), shape.key_dim, job.first,
                    job.count, queries_.data() + std::size_t{job.list} * shape.heads, heads, scores,
                    scores, board.stride);
  for (std::uint32_t h = 0; h < shape.heads; ++h)
    cpu_.sketch.weigh(scores + h * board.stride, job.count, &job_max_[job_index * shape.heads + h],
                      &job_sum_[job_index * shape.heads + h]);
}

// The mass of each row, summed over the query heads, to the first head's scores.
void SketchSelector::add_heads(HeadShape shape, const ListQuery& list, const Board& board) {
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    const auto at = [&](std::size_t job) { return job * shape.heads + h; };
    const bool steady = h < list.steady.size() && list.steady[h].sum > 0.0f;
    float max = steady ? list.steady[h].max : -std::numeric_limits<float>::infinity();
    for (std::size_t j = board.first_job; j < board.last_job; ++j)
      max = std::max(max, job_max_[at(j)]);
    double sum = steady ? list.steady[h].sum * std::exp(double{list.steady[h].max} - max) : 0.0;
    for (std::size_t j = board.first_job; j < board.last_job; ++j)
      sum += job_sum_[at(j)] * std::exp(double{job_max_[at(j)]} - max);
    for (std::size_t j = board.first_job; j < board.last_job; ++j) {
      const float share =
          sum > 0.0 ? static_cast<float>(std::exp(double{job_max_[at(j)]} - max) / sum) : 0.0f;
      float* into = scores_.data() + board.scores + jobs_[j].at;
      const float* weight = into + h * board.stride;
      if (h == 0)
        for (std::uint32_t r = 0; r < jobs_[j].count; ++r) into[r] *= share;
      else
        for (std::uint32_t r = 0; r < jobs_[j].count; ++r) into[r] += weight[r] * share;
    }
  }
  for (std::size_t j = board.first_job; j < board.last_job; ++j) {
    float* rows = scores_.data() + board.scores + jobs_[j].at;
    std::fill(rows + jobs_[j].count, rows + padded(jobs_[j].count), kNoRow);
  }
}

void SketchSelector::write_everything(const ListQuery& list, ReadList* out) {
  for (std::uint32_t run = 0; run < list.runs.size(); ++run)
    out->reads.push_back({.run = run, .everything = true});
}

void SketchSelector::write_rows(const ListQuery& list, const Board& board, ReadList* out) const {
  const RowSet* sets = sets_.data() + board.sets;
  for (std::uint32_t r = 0; r < list.runs.size(); ++r) {
    if (!index_of(list.runs[r])) {
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

void SketchSelector::write_summaries(const ListQuery& list, Board* board, ReadList* out) const {
  const RowSet* sets = sets_.data() + board->sets;
  for (std::uint32_t r = 0; r < list.runs.size(); ++r) {
    const Run& run = list.runs[r];
    if (!index_of(run)) continue;
    const std::span<const std::uint16_t> starts = index_of(run)->starts(list.head);
    Read read{.run = r,
              .form = Form::summaries,
              .first = static_cast<std::uint32_t>(out->picks.size()),
              .weighted = true,
              .first_weight = static_cast<std::uint32_t>(out->log_weight.size())};
    std::uint32_t c = 0;  // the cluster at hand, and how many of its rows are read
    std::uint32_t taken = 0;
    const auto close = [&] {
      const std::uint32_t unread = starts[c + 1] - starts[c] - taken;
      if (unread != 0) {
        const std::uint32_t block = c / kBlockRows;
        if (out->picks.size() == read.first || out->picks.back().block != block)
          out->picks.push_back({block, 0});
        out->picks.back().rows |= RowSet{1} << c % kBlockRows;
        out->log_weight.push_back(log_[unread]);
      }
      ++c;
      taken = 0;
    };
    for_each_row({sets, run.rows->blocks()}, [&](std::size_t row) {
      while (starts[c + 1] <= row) close();
      ++taken;
    });
    while (c < index_of(run)->clusters()) close();
    sets += run.rows->blocks();
    read.last = static_cast<std::uint32_t>(out->picks.size());
    if (read.first != read.last) out->reads.push_back(read);

    const RowLayout& layout = run.summaries->layout;
    const std::uint64_t estimated = out->log_weight.size() - read.first_weight;
    board->bytes += index_of(run)->bytes() / run.rows->heads +
                    std::uint64_t{index_of(run)->clusters()} * layout.key_bytes +
                    estimated * layout.value_bytes;
  }
}

Chosen SketchSelector::choose(HeadShape shape, std::span<const ListQuery> lists,
                              const SummaryRows& summaries, const Workers& workers,
                              std::span<ReadList> out) {
  TL_CHECK(lists.size() == out.size());
  lay_out(shape, lists, static_cast<std::size_t>(workers.threads()));
  prepare(shape, lists);
  workers.parallel(jobs_.size(), 1, [&](std::size_t first, std::size_t last) {
    Slot* slot = &slots_[Workers::slot()];
    for (std::size_t j = first; j < last; ++j)
      score(shape, lists[jobs_[j].list], jobs_[j], j, summaries, slot);
  });
  workers.parallel(lists.size(), 1, [&](std::size_t first, std::size_t last) {
    Slot* slot = &slots_[Workers::slot()];
    for (std::size_t l = first; l < last; ++l) {
      Board& board = boards_[l];
      out[l].clear();
      if (board.everything) {
        write_everything(lists[l], &out[l]);
        continue;
      }
      add_heads(shape, lists[l], board);
      top_rows({scores_.data() + board.scores, board.stride}, board.budget, &slot->top,
               {sets_.data() + board.sets, board.stride / kBlockRows});
      write_rows(lists[l], board, &out[l]);
      write_summaries(lists[l], &board, &out[l]);
    }
  });
  Chosen chosen;
  for (std::size_t l = 0; l < lists.size(); ++l) chosen.index_bytes += boards_[l].bytes;
  return chosen;
}

}  // namespace thermocline
