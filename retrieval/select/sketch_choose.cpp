#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "retrieval/select/sketch.h"

namespace thermocline {
namespace {

// Fixed cuts: sums of weights are taken job by job.
constexpr std::uint32_t kJobRows = 1024;
constexpr std::uint32_t kJobClusters = 128;
constexpr float kNoRow = -1.0f;
constexpr float kNone = -std::numeric_limits<float>::infinity();
// A cluster whose unread rows have less than this share of every query head's attention together is
// left out of the estimate: a thousand of them are a tenth of a percent.
constexpr float kNegligible = 1e-6f;

const SketchIndex* index_of(const Run& run) {
  return dynamic_cast<const SketchIndex*>(run.index.get());  // null: another method formed it
}

// What a query head has attended already; nothing where the list does not say.
AttnState steady_of(const ListQuery& list, std::uint32_t head) {
  return head < list.steady.size() ? list.steady[head] : AttnState{};
}

std::uint32_t groups_of(std::uint32_t rows) { return (rows + kSketchGroup - 1) / kSketchGroup; }

// Writes `value` to [first, last); may write past `last`, but not to `end` or beyond.
void spread(float value, float* at, std::size_t first, std::size_t last, std::size_t end) {
  constexpr std::size_t kAtOnce = 8;
  std::size_t r = first;
  for (; r < last && r + kAtOnce <= end; r += kAtOnce)
    for (std::size_t i = 0; i < kAtOnce; ++i) at[r + i] = value;
  for (; r < last; ++r) at[r] = value;
}

// Visits the set bits of a row of words, in order.
template <typename Visit>
void for_each_bit(std::span<const RowSet> sets, const Visit& visit) {
  for (std::size_t word = 0; word < sets.size(); ++word)
    for (RowSet left = sets[word]; left != 0; left &= left - 1)
      visit(word * kBlockRows + static_cast<std::size_t>(std::countr_zero(left)));
}

template <typename T>
void grow(std::vector<T>* to, std::size_t size) {
  if (to->size() < size) to->resize(size);
}

}  // namespace

// Where everything goes, as far as it does not depend on the queries.
void SketchSelector::lay_out(HeadShape shape, std::span<const ListQuery> lists) {
  grow(&boards_, lists.size());
  cluster_jobs_.clear();
  std::size_t clusters = 0, floats = 0, sets = 0;
  for (std::uint32_t l = 0; l < lists.size(); ++l) {
    Board& board = boards_[l];
    std::uint64_t rows = 0;
    for (const Run& run : lists[l].runs) rows += index_of(run) ? run.rows->rows : 0;
    const double share = options_.share * lists[l].length;
    board.budget = std::max(options_.min_rows, static_cast<std::uint32_t>(share));
    board.everything = board.budget >= rows;
    board.clusters_at = clusters;
    board.clusters = 0;
    board.scores_at = floats;
    board.sets_at = sets;
    board.stride = 0;
    board.bytes = 0;
    board.stretches.clear();
    if (board.everything) continue;
    for (std::uint32_t r = 0; r < lists[l].runs.size(); ++r) {
      const Run& run = lists[l].runs[r];
      const SketchIndex* index = index_of(run);
      if (!index) continue;
      TL_CHECK(run.summaries && index->rows() == run.rows->rows &&
               index->clusters() == run.summaries->rows);
      for (std::uint32_t first = 0; first < index->clusters(); first += kJobClusters)
        cluster_jobs_.push_back({l, r, first, std::min(kJobClusters, index->clusters() - first),
                                 board.clusters + first});
      board.clusters += index->clusters();
      board.stride += groups_of(index->rows()) * kSketchGroup;
      sets += run.rows->blocks();
    }
    clusters += board.clusters;
    floats += board.stride * shape.heads;
  }
  grow(&cluster_scores_, clusters * shape.heads);
  grow(&cluster_mass_, clusters);
  grow(&scores_, floats);
  grow(&sets_, sets);
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

void SketchSelector::score_clusters(HeadShape shape, const ListQuery& list, const ClusterJob& job,
                                    const SummaryRows& summaries) {
  const Run& run = list.runs[job.run];
  const Board& board = boards_[job.list];
  const std::size_t row_bytes = run.summaries->layout.bytes();
  cpu_.sketch.exact(summaries.summaries(*run.summaries, list.head) + job.first * row_bytes,
                    row_bytes, job.count, shape.key_dim, list.query, static_cast<int>(shape.heads),
                    cluster_scores_.data() + board.clusters_at * shape.heads + job.at,
                    board.clusters);
}

// The clusters whose rows are worth a look: those with most mass a row, summed over the query
// heads, as many as hold `candidates` times the budget. Their groups become the board's stretches.
void SketchSelector::pick_clusters(HeadShape shape, const ListQuery& list, Board* board) {
  const float* scores = cluster_scores_.data() + board->clusters_at * shape.heads;
  float* mass = cluster_mass_.data() + board->clusters_at;
  std::fill_n(mass, board->clusters, 0.0f);
  board->unread_max.resize(shape.heads);
  board->unread_sum.assign(shape.heads, 0.0f);
  const auto for_each_cluster = [&](const auto& visit) {
    std::size_t at = 0;
    for (const Run& run : list.runs) {
      const SketchIndex* index = index_of(run);
      if (!index) continue;
      const std::span<const std::uint16_t> starts = index->starts(list.head);
      for (std::uint32_t c = 0; c < index->clusters(); ++c, ++at)
        visit(at, static_cast<std::uint32_t>(starts[c]), static_cast<std::uint32_t>(starts[c + 1]));
    }
  };
  grow(&board->weights, board->clusters);
  float* weight = board->weights.data();
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    std::copy_n(scores + h * board->clusters, board->clusters, weight);
    float max = kNone, ignored = 0;
    cpu_.sketch.weigh(weight, board->clusters, &max, &ignored);
    double sum = 0;
    for_each_cluster([&](std::size_t c, std::uint32_t first, std::uint32_t last) {
      sum += weight[c] * static_cast<float>(last - first);
    });
    const AttnState steady = steady_of(list, h);
    const double beside = steady.sum > 0.0f ? steady.sum * std::exp(double{steady.max} - max) : 0.0;
    const float share = static_cast<float>(1.0 / (sum + beside));
    for (std::size_t c = 0; c < board->clusters; ++c) mass[c] += weight[c] * share;
    board->unread_max[h] = max;
  }
  const double wanted = options_.candidates * board->budget / options_.cluster;
  const auto most = static_cast<std::size_t>(
      std::min<double>(std::ceil(wanted), static_cast<double>(board->clusters)));
  board->taken.resize((board->clusters + kBlockRows - 1) / kBlockRows);
  top_rows({mass, board->clusters}, most, &board->top, board->taken);

  // Groups that any of their rows has been taken from; what is left over is only estimated.
  std::size_t cluster = 0;
  std::uint32_t at = 0;
  for (std::uint32_t r = 0; r < list.runs.size(); ++r) {
    const SketchIndex* index = index_of(list.runs[r]);
    if (!index) continue;
    const std::span<const std::uint16_t> starts = index->starts(list.head);
    std::uint32_t from = 0, to = 0;  // the stretch at hand, in groups
    const auto close = [&] {
      for (std::uint32_t first = from * kSketchGroup; first < to * kSketchGroup;
           first += kJobRows) {
        const std::uint32_t end = std::min(to * kSketchGroup, first + kJobRows);
        board->stretches.push_back({r, first, std::min(end, index->rows()) - first, at});
        at += end - first;
      }
    };
    for (std::uint32_t c = 0; c < index->clusters(); ++c, ++cluster) {
      if (starts[c] == starts[c + 1]) continue;
      if (!(board->taken[cluster / kBlockRows] >> cluster % kBlockRows & 1)) continue;
      const std::uint32_t first = starts[c] / kSketchGroup;
      if (first > to || to == 0) {
        close();
        from = first;
      }
      to = groups_of(starts[c + 1]);
    }
    close();
  }
  board->rows = at;
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    double sum = 0;
    for_each_cluster([&](std::size_t c, std::uint32_t first, std::uint32_t last) {
      if (!(board->taken[c / kBlockRows] >> c % kBlockRows & 1))
        sum += std::exp(double{scores[h * board->clusters + c]} - board->unread_max[h]) *
               (last - first);
    });
    board->unread_sum[h] = static_cast<float>(sum);
  }
}

// Cuts all boards' stretches into jobs of about kJobRows.
void SketchSelector::lay_out_rows(std::size_t lists, HeadShape shape) {
  row_jobs_.clear();
  for (std::uint32_t l = 0; l < lists; ++l) {
    Board& board = boards_[l];
    board.first_job = row_jobs_.size();
    std::uint32_t first = 0, rows = 0;
    for (std::uint32_t s = 0; s < board.stretches.size(); ++s) {
      if (rows > 0 && rows + board.stretches[s].count > kJobRows) {
        row_jobs_.push_back({l, first, s});
        first = s;
        rows = 0;
      }
      rows += board.stretches[s].count;
    }
    if (rows > 0)
      row_jobs_.push_back({l, first, static_cast<std::uint32_t>(board.stretches.size())});
    board.last_job = row_jobs_.size();
  }
  grow(&job_max_, row_jobs_.size() * shape.heads);
  grow(&job_sum_, row_jobs_.size() * shape.heads);
}

// Scores a job's rows and turns them into weights below the job's own maximum.
void SketchSelector::score_rows(HeadShape shape, const ListQuery& list, std::size_t job_index) {
  const RowJob& job = row_jobs_[job_index];
  const Board& board = boards_[job.list];
  const int heads = static_cast<int>(shape.heads);
  float* scores = scores_.data() + board.scores_at;
  std::size_t run_clusters = 0;  // before the stretch's run
  std::uint32_t run = 0;
  for (std::uint32_t s = job.first; s < job.last; ++s) {
    const Stretch& stretch = board.stretches[s];
    for (; run < stretch.run; ++run)
      run_clusters += index_of(list.runs[run]) ? index_of(list.runs[run])->clusters() : 0;
    const SketchIndex& index = *index_of(list.runs[stretch.run]);
    const std::span<const std::uint16_t> starts = index.starts(list.head);
    const std::uint32_t end = stretch.first + stretch.count;
    const auto past = std::upper_bound(starts.begin() + 1, starts.end(), stretch.first);
    const std::size_t from = static_cast<std::size_t>(past - starts.begin()) - 1;
    const std::size_t padded = groups_of(stretch.count) * kSketchGroup;
    for (std::uint32_t h = 0; h < shape.heads; ++h) {
      const float* cluster_score = cluster_scores_.data() + board.clusters_at * shape.heads +
                                   h * board.clusters + run_clusters;
      float* base = scores + h * board.stride + stretch.at;
      for (std::size_t c = from; c < index.clusters() && starts[c] < end; ++c)
        spread(cluster_score[c], base,
               std::max<std::uint32_t>(starts[c], stretch.first) - stretch.first,
               std::min<std::uint32_t>(starts[c + 1], end) - stretch.first, stretch.count);
      std::fill(base + stretch.count, base + padded, kNone);
    }
    cpu_.sketch.score(index.codes(list.head), index.scales(list.head), shape.key_dim, stretch.first,
                      stretch.count, queries_.data() + std::size_t{job.list} * shape.heads, heads,
                      scores + stretch.at, scores + stretch.at, board.stride);
  }
  const auto [first, count] = board_range(board, job);
  for (std::uint32_t h = 0; h < shape.heads; ++h)
    cpu_.sketch.weigh(scores + h * board.stride + first, count,
                      &job_max_[job_index * shape.heads + h],
                      &job_sum_[job_index * shape.heads + h]);
}

// The rows of a job on its board, padding included.
std::pair<std::size_t, std::size_t> SketchSelector::board_range(const Board& board,
                                                                const RowJob& job) {
  const Stretch& last = board.stretches[job.last - 1];
  const std::size_t first = board.stretches[job.first].at;
  return {first, last.at + groups_of(last.count) * kSketchGroup - first};
}

// The mass of each row, summed over the query heads, to the first head's scores.
void SketchSelector::add_heads(HeadShape shape, const ListQuery& list, const Board& board) {
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    const auto at = [&](std::size_t job) { return job * shape.heads + h; };
    const AttnState steady = steady_of(list, h);
    float max = std::max(board.unread_max[h], steady.max);
    for (std::size_t j = board.first_job; j < board.last_job; ++j)
      max = std::max(max, job_max_[at(j)]);
    double sum = board.unread_sum[h] * std::exp(double{board.unread_max[h]} - max);
    if (steady.sum > 0.0f) sum += steady.sum * std::exp(double{steady.max} - max);
    for (std::size_t j = board.first_job; j < board.last_job; ++j)
      sum += job_sum_[at(j)] * std::exp(double{job_max_[at(j)]} - max);
    for (std::size_t j = board.first_job; j < board.last_job; ++j) {
      const float share =
          sum > 0.0 ? static_cast<float>(std::exp(double{job_max_[at(j)]} - max) / sum) : 0.0f;
      const auto [first, count] = board_range(board, row_jobs_[j]);
      float* into = scores_.data() + board.scores_at + first;
      const float* weight = into + h * board.stride;
      if (h == 0)
        for (std::size_t r = 0; r < count; ++r) into[r] *= share;
      else
        for (std::size_t r = 0; r < count; ++r) into[r] += weight[r] * share;
    }
  }
  for (const Stretch& stretch : board.stretches) {
    float* rows = scores_.data() + board.scores_at + stretch.at;
    std::fill(rows + stretch.count, rows + groups_of(stretch.count) * kSketchGroup, kNoRow);
  }
}

// The budget's best rows, from the board back to where they are in their runs.
void SketchSelector::take_rows(const ListQuery& list, Board* board) {
  board->taken.resize((board->rows + kBlockRows - 1) / kBlockRows);
  top_rows({scores_.data() + board->scores_at, board->rows}, board->budget, &board->top,
           board->taken);
  std::size_t sets = board->sets_at;
  std::uint32_t run = 0;
  const auto open_run = [&] {
    if (index_of(list.runs[run]))
      std::fill_n(sets_.data() + sets, list.runs[run].rows->blocks(), 0);
  };
  const auto next_run = [&] {
    if (index_of(list.runs[run])) sets += list.runs[run].rows->blocks();
    if (++run < list.runs.size()) open_run();
  };
  open_run();
  for (const Stretch& stretch : board->stretches) {
    while (run < stretch.run) next_run();
    for (std::uint32_t g = 0; g < groups_of(stretch.count); ++g) {
      const std::uint32_t on_board = stretch.at + g * kSketchGroup;
      const std::uint32_t row = stretch.first + g * kSketchGroup;
      const RowSet group =
          board->taken[on_board / kBlockRows] >> on_board % kBlockRows & first_rows(kSketchGroup);
      sets_[sets + row / kBlockRows] |= group << row % kBlockRows;
    }
  }
  while (run < list.runs.size()) next_run();
}

void SketchSelector::write_everything(const ListQuery& list, ReadList* out) {
  for (std::uint32_t run = 0; run < list.runs.size(); ++run)
    out->reads.push_back({.run = run, .everything = true});
}

void SketchSelector::write_rows(const ListQuery& list, const Board& board, ReadList* out) const {
  const RowSet* sets = sets_.data() + board.sets_at;
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
  const RowSet* sets = sets_.data() + board->sets_at;
  const float* mass = cluster_mass_.data() + board->clusters_at;
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
      if (unread != 0 && mass[c] * static_cast<float>(unread) >= kNegligible) {
        const std::uint32_t block = c / kBlockRows;
        if (out->picks.size() == read.first || out->picks.back().block != block)
          out->picks.push_back({block, 0});
        out->picks.back().rows |= RowSet{1} << c % kBlockRows;
        out->log_weight.push_back(log_[unread]);
      }
      ++c;
      taken = 0;
    };
    for_each_bit({sets, run.rows->blocks()}, [&](std::size_t row) {
      while (starts[c + 1] <= row) close();
      ++taken;
    });
    while (c < index_of(run)->clusters()) close();
    sets += run.rows->blocks();
    mass += index_of(run)->clusters();
    read.last = static_cast<std::uint32_t>(out->picks.size());
    if (read.first != read.last) out->reads.push_back(read);

    const RowLayout& layout = run.summaries->layout;
    const std::uint64_t estimated = out->log_weight.size() - read.first_weight;
    board->bytes += std::uint64_t{index_of(run)->clusters()} * layout.key_bytes +
                    estimated * layout.value_bytes;
  }
}

Chosen SketchSelector::choose(HeadShape shape, std::span<const ListQuery> lists,
                              const SummaryRows& summaries, const Workers& workers,
                              std::span<ReadList> out) {
  TL_CHECK(lists.size() == out.size());
  lay_out(shape, lists);
  prepare(shape, lists);
  const auto for_each_list = [&](const auto& body) {
    workers.parallel(lists.size(), 1, [&](std::size_t first, std::size_t last) {
      for (std::size_t l = first; l < last; ++l) body(l);
    });
  };
  workers.parallel(cluster_jobs_.size(), 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t j = first; j < last; ++j)
      score_clusters(shape, lists[cluster_jobs_[j].list], cluster_jobs_[j], summaries);
  });
  for_each_list([&](std::size_t l) {
    if (!boards_[l].everything) pick_clusters(shape, lists[l], &boards_[l]);
  });
  lay_out_rows(lists.size(), shape);
  workers.parallel(row_jobs_.size(), 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t j = first; j < last; ++j) score_rows(shape, lists[row_jobs_[j].list], j);
  });
  for_each_list([&](std::size_t l) {
    Board& board = boards_[l];
    out[l].clear();
    if (board.everything) {
      write_everything(lists[l], &out[l]);
      return;
    }
    add_heads(shape, lists[l], board);
    take_rows(lists[l], &board);
    write_rows(lists[l], board, &out[l]);
    write_summaries(lists[l], &board, &out[l]);
    board.bytes += board.rows * (shape.key_dim / 4 + sizeof(f16));
  });
  Chosen chosen;
  for (std::size_t l = 0; l < lists.size(); ++l) chosen.index_bytes += boards_[l].bytes;
  return chosen;
}

}  // namespace thermocline
