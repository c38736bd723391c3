#include "retrieval/select/sketch_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

namespace thermocline {
namespace {

// A fixed cut: sums of weights are taken job by job.
constexpr std::uint32_t kJobRows = 256;
// A shorter loop than this is over before another thread has begun to help.
constexpr std::size_t kSharedRows = 8192;

}  // namespace

void SketchRows::look(const SketchList& list, SketchMeans* means) {
  stretches_.clear();
  rows_ = real_rows_ = 0;
  if (list.looks_at_all())
    look_at_all(list, *means);
  else
    look_at_best(list, *means);
  count_uncovered(list, means);
  lay_out_jobs(list);
  list.spread(jobs_.size() - 1, rows_ >= kSharedRows, [&](std::size_t first, std::size_t last) {
    for (std::size_t j = first; j < last; ++j) weigh(list, *means, j);
  });
  add_heads(list, means);
}

void SketchRows::look_at_all(const SketchList& list, const SketchMeans& means) {
  for (std::uint32_t p = 0; p < means.patches().size(); ++p)
    look_at(list, means, p, 0, list.indexes[means.patches()[p].run]->rows(), 0);
}

// The clusters whose rows are worth a look: the best rated, as many as hold the candidates.
void SketchRows::look_at_best(const SketchList& list, const SketchMeans& means) {
  const double wanted = list.candidates() / list.options.cluster;
  const auto most = static_cast<std::size_t>(
      std::min<double>(std::ceil(wanted), static_cast<double>(means.clusters())));
  best_.resize(set_words(means.clusters()));
  top_rows(list.cpu.topk, {means.units().rating.data(), means.clusters()}, most, &top_, best_);
  for (std::uint32_t p = 0; p < means.patches().size(); ++p) {
    const SketchPatch& patch = means.patches()[p];
    const std::uint16_t* starts = list.starts(patch.run).data() + patch.first;
    std::uint32_t from = 0, to = 0, from_cluster = 0;  // the stretch at hand, in sixteens
    const auto close = [&] {
      look_at(list, means, p, from * kSketchGroup, to * kSketchGroup, from_cluster);
    };
    const std::size_t end = patch.at + patch.clusters();
    for (std::size_t word = patch.at / kBlockRows; word < set_words(end); ++word) {
      const std::size_t begin = word * kBlockRows;
      RowSet left = best_[word];
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
        to = sixteens(starts[c + 1]);
      }
    }
    close();
  }
}

// Takes whole sixteens of a patch's rows, from `first` on, a row of cluster `cluster` of the patch.
void SketchRows::look_at(const SketchList& list, const SketchMeans& means, std::uint32_t patch,
                         std::uint32_t first, std::uint32_t end, std::uint32_t cluster) {
  const SketchPatch& of = means.patches()[patch];
  const std::uint32_t rows = list.indexes[of.run]->rows();
  const std::uint16_t* starts = list.starts(of.run).data() + of.first;
  end = sixteens(end) * kSketchGroup;
  for (; first < end; first += kJobRows) {
    while (starts[cluster + 1] <= first) ++cluster;
    const std::uint32_t last = std::min(end, first + kJobRows);
    stretches_.push_back(
        {patch, cluster, first, std::min(last, rows) - first, static_cast<std::uint32_t>(rows_)});
    rows_ += last - first;
    real_rows_ += stretches_.back().count;
  }
}

// The rows of clusters that no stretch covers: they have their clusters' weight each.
void SketchRows::count_uncovered(const SketchList& list, SketchMeans* means) const {
  for (const SketchStretch& stretch : stretches_) {
    const SketchPatch& patch = means->patches()[stretch.patch];
    const std::uint16_t* starts = list.starts(patch.run).data() + patch.first;
    float* left = means->units().size.data() + patch.at;
    const std::uint32_t end = stretch.first + stretch.count;
    for (std::uint32_t c = stretch.cluster; c < patch.clusters() && starts[c] < end; ++c)
      left[c] -= static_cast<float>(std::min<std::uint32_t>(starts[c + 1], end) -
                                    std::max<std::uint32_t>(starts[c], stretch.first));
  }
}

// Cuts the stretches into jobs of about kJobRows.
void SketchRows::lay_out_jobs(const SketchList& list) {
  // As many as there could be, so that a step with more of them allocates nothing.
  const std::size_t most = list.rows + kSketchGroup * list.indexes.size();
  grow(&weight_, most * list.shape.heads);
  grow(&mass_, most);
  jobs_.clear();
  std::uint32_t rows = 0;
  for (std::uint32_t s = 0; s < stretches_.size(); ++s) {
    if (s == 0 || rows + stretches_[s].count > kJobRows) {
      jobs_.push_back(s);
      rows = 0;
    }
    rows += stretches_[s].count;
  }
  job_sum_.assign(jobs_.size() * list.shape.heads, 0.0f);
  jobs_.push_back(static_cast<std::uint32_t>(stretches_.size()));
}

// Asks for the codes of a stretch, or of the beginning of a long one: stretches are too short for
// the processor to see where they lead.
void SketchRows::fetch(const SketchList& list, const SketchMeans& means,
                       std::uint32_t stretch) const {
  constexpr std::size_t kLine = 64, kMost = 1024;
  const SketchStretch& of = stretches_[stretch];
  const SketchIndex& index = *list.indexes[means.patches()[of.patch].run];
  if (index.keeps_keys()) return;  // dot_rows asks for them itself
  const std::size_t row_bytes = sketch_row_bytes(index.bits(), list.shape.key_dim);
  const std::uint8_t* codes = index.codes(list.asked->head) + of.first * row_bytes;
  const f16* scales = index.scales(list.asked->head) + of.first;
  const std::size_t bytes = std::min<std::size_t>(of.count * row_bytes, kMost);
  for (std::size_t i = 0; i < bytes; i += kLine) __builtin_prefetch(codes + i);
  __builtin_prefetch(scales);
  __builtin_prefetch(scales + kLine / sizeof(f16));
}

void SketchRows::weigh(const SketchList& list, const SketchMeans& means, std::size_t job) {
  constexpr std::uint32_t kAhead = 4;
  const SketchUnits& units = means.units();
  for (std::uint32_t s = jobs_[job]; s < std::min(jobs_[job] + kAhead, jobs_[job + 1]); ++s)
    fetch(list, means, s);
  for (std::uint32_t s = jobs_[job]; s < jobs_[job + 1]; ++s) {
    if (s + kAhead < jobs_[job + 1]) fetch(list, means, s + kAhead);
    const SketchStretch& stretch = stretches_[s];
    const SketchPatch& patch = means.patches()[stretch.patch];
    const SketchIndex& index = *list.indexes[patch.run];
    float* const sum = job_sum_.data() + job * list.shape.heads;
    if (index.keeps_keys()) {
      weigh_keys(list, means, stretch, sum);
      continue;
    }
    const SketchScan scan{.bits = index.bits(),
                          .codes = index.codes(list.asked->head),
                          .scales = index.scales(list.asked->head),
                          .starts = list.starts(patch.run).data() + patch.first,
                          .key_dim = list.shape.key_dim,
                          .heads = static_cast<int>(list.shape.heads),
                          .queries = list.queries.data(),
                          .cluster_score = units.score.data() + patch.at,
                          .cluster_stride = units.count,
                          .shift = units.shift.data()};
    list.cpu.sketch.weigh_rows(scan, stretch.first, stretch.count, stretch.cluster,
                               weight_.data() + stretch.at, rows_, sum);
  }
}

// What SketchOps::weigh_rows does, by exact scores and for real rows alone.
void SketchRows::weigh_keys(const SketchList& list, const SketchMeans& means,
                            const SketchStretch& stretch, float* sum) {
  const SketchIndex& index = *list.indexes[means.patches()[stretch.patch].run];
  const std::size_t key_bytes = sketch_row_bytes(index.bits(), list.shape.key_dim);
  float* weight = weight_.data() + stretch.at;
  list.cpu.sketch.dot_rows(SketchIndex::kKeyFormat,
                           index.keys(list.asked->head) + stretch.first * key_bytes, key_bytes,
                           stretch.count, list.shape.key_dim, list.asked->query,
                           static_cast<int>(list.shape.heads), weight, rows_);
  for (std::uint32_t h = 0; h < list.shape.heads; ++h, weight += rows_)
    for (std::uint32_t i = 0; i < stretch.count; ++i) {
      weight[i] = std::exp(std::min(weight[i] - means.units().shift[h], kSketchMostAbove));
      sum[h] += weight[i];
    }
}

// The mass of each row, summed over the query heads.
void SketchRows::add_heads(const SketchList& list, SketchMeans* means) {
  const std::uint32_t heads = list.shape.heads;
  SketchUnits& units = means->units();
  const std::size_t jobs = jobs_.size() - 1;
  for (std::uint32_t h = 0; h < heads; ++h) {
    double sum = units.all(h);
    for (std::size_t j = 0; j < jobs; ++j) sum += job_sum_[j * heads + h];
    units.share[h] = sum > 0.0 ? static_cast<float>(1.0 / sum) : 0.0f;
  }
  list.cpu.sketch.add_heads(weight_.data(), rows_, rows_, units.share.data(),
                            static_cast<int>(heads), mass_.data());
  for (const SketchStretch& stretch : stretches_)
    std::fill(mass_.data() + stretch.at + stretch.count,
              mass_.data() + stretch.at + sixteens(stretch.count) * kSketchGroup, kNever);
}

void SketchRows::take(const SketchList& list, const SketchMeans& means, RowSet* read,
                      RowSet* coded) {
  const std::uint32_t most = list.codes_values() ? list.coded_budget : list.budget;
  best_.resize(set_words(rows_));
  top_rows(list.cpu.topk, {mass_.data(), rows_}, std::min(most, real_rows_), &top_, best_);
  if (list.codes_values()) {
    add_best(list, means, coded);
    keep_what_codes_lose_most(list, means);
  }
  add_best(list, means, read);
}

void SketchRows::keep_what_codes_lose_most(const SketchList& list, const SketchMeans& means) {
  grow(&loss_, std::size_t{list.coded_budget} + kSketchGroup);
  std::size_t coded = 0;
  for (const SketchStretch& stretch : stretches_) {
    const SketchIndex& index = *list.indexes[means.patches()[stretch.patch].run];
    coded += list.cpu.sketch.losses(mass_.data() + stretch.at,
                                    index.scales(list.asked->head) + stretch.first, best_.data(),
                                    stretch.at, stretch.count, loss_.data() + coded);
  }
  kept_.resize(set_words(coded));
  top_rows(list.cpu.topk, {loss_.data(), coded}, list.budget, &top_, kept_);

  std::size_t at = 0;  // how many coded rows there are before the word
  for (RowSet& word : best_) {
    RowSet rows = std::exchange(word, 0), kept = 0;
    const auto in_word = static_cast<std::size_t>(std::popcount(rows));
    set_add_bits(kept_.data(), at, in_word, &kept, 0);
    for (int next = 0; kept != 0; kept &= kept - 1) {
      for (const int number = std::countr_zero(kept); next < number; ++next) rows &= rows - 1;
      word |= rows & (~rows + 1);
    }
    at += in_word;
  }
}

void SketchRows::add_best(const SketchList& list, const SketchMeans& means, RowSet* sets) const {
  std::uint32_t run = 0;
  for (const SketchStretch& stretch : stretches_) {
    for (; run < means.patches()[stretch.patch].run; ++run)
      if (list.indexes[run]) sets += list.asked->runs[run].rows->blocks();
    for (std::uint32_t g = 0; g < sixteens(stretch.count); ++g) {
      const std::uint32_t from = stretch.at + g * kSketchGroup;
      const std::uint32_t row = stretch.first + g * kSketchGroup;
      const RowSet group = best_[from / kBlockRows] >> from % kBlockRows & first_rows(kSketchGroup);
      sets[row / kBlockRows] |= group << row % kBlockRows;
    }
  }
}

}  // namespace thermocline
