#include "retrieval/select/sketch_means.h"

#include <algorithm>
#include <cmath>

namespace thermocline {
namespace {

constexpr std::size_t kJobPatches = 4;
// Shorter loops than this are over before another thread has begun to help.
constexpr std::size_t kSharedClusters = 2048;

template <typename T>
void fetch(std::span<const T> values) {
  constexpr std::size_t kLine = 64;
  const auto* at = reinterpret_cast<const std::byte*>(values.data());
  for (std::size_t i = 0; i < values.size_bytes(); i += kLine) __builtin_prefetch(at + i);
}

// Asks for the means of clusters, or of groups, and their spreads: patches and segments are too
// short for the processor to see where they lead.
void fetch_units(const SketchIndex& index, std::uint32_t head, std::uint32_t first,
                 std::uint32_t units) {
  constexpr std::uint32_t kMost = 32;  // a longer loop asks for the others itself
  units = std::min(units, kMost);
  const std::size_t bytes = index.mean_bytes();
  fetch(std::span<const std::byte>(index.means(head) + first * bytes, units * bytes));
  fetch(std::span<const float>(index.spreads(head)).subspan(first, units));
}

}  // namespace

void SketchMeans::score(const SketchList& list) {
  find_patches(list);
  units_.begin(clusters_ + (grouped_ ? list.groups : 0), list.shape.heads);
  const std::size_t jobs = (patches_.size() + kJobPatches - 1) / kJobPatches;
  list.spread(jobs, clusters_ >= kSharedClusters, [&](std::size_t from, std::size_t to) {
    const std::size_t end = std::min(to * kJobPatches, patches_.size());
    for (std::size_t p = from * kJobPatches; p < end; ++p) {
      if (p + 1 < patches_.size()) {
        const SketchPatch& next = patches_[p + 1];
        fetch_units(*list.indexes[next.run], list.asked->head, next.first, next.clusters());
      }
      const SketchPatch& patch = patches_[p];
      units_.score_means(list, *list.indexes[patch.run], patch.first, patch.clusters(), patch.at);
      const std::uint16_t* starts = list.starts(patch.run).data() + patch.first;
      float* size = units_.size.data() + patch.at;
      for (std::uint32_t c = 0; c < patch.clusters(); ++c)
        size[c] = static_cast<float>(starts[c + 1] - starts[c]);
    }
  });
  if (grouped_) {
    for (std::uint32_t h = 0; h < list.shape.heads; ++h)
      std::copy_n(groups_.score.data() + h * list.groups, list.groups,
                  units_.score.data() + h * units_.count + clusters_);
    leave_groups(list);
  }
  units_.weigh(list);
}

// The clusters that are scored: all of them, or those of the best groups.
void SketchMeans::find_patches(const SketchList& list) {
  patches_.clear();
  lent_.clear();
  const double wanted =
      std::max<double>(list.options.means, 2 * list.candidates() / list.options.cluster);
  grouped_ = 2 * wanted < static_cast<double>(list.clusters);
  if (grouped_) {
    rate_groups(list);
    const double share = wanted / static_cast<double>(list.clusters);
    taken_groups_.resize(set_words(list.groups));
    top_rows(list.cpu.topk, {groups_.rating.data(), list.groups},
             static_cast<std::size_t>(std::ceil(share * static_cast<double>(list.groups))), &top_,
             taken_groups_);
  }
  std::size_t first_group = 0;
  for (std::uint32_t r = 0; r < list.indexes.size(); ++r) {
    const SketchIndex* index = list.indexes[r];
    if (!index) continue;
    if (grouped_ && index->groups() > 0)
      add_patches(list, r, first_group);
    else
      patches_.push_back({r, 0, index->clusters()});
    first_group += index->groups();
  }
  clusters_ = 0;
  for (SketchPatch& patch : patches_) {
    patch.at = clusters_;
    clusters_ += patch.clusters();
  }
}

void SketchMeans::rate_groups(const SketchList& list) {
  groups_.begin(list.groups, list.shape.heads);
  std::size_t at = 0;
  for (std::uint32_t r = 0; r < list.indexes.size(); ++r) {
    const SketchIndex* index = list.indexes[r];
    if (!index) continue;
    if (r + 1 < list.indexes.size() && list.indexes[r + 1]) {
      const SketchIndex& next = *list.indexes[r + 1];
      fetch_units(next, list.asked->head, next.clusters(), next.groups());
      fetch(list.group_starts(r + 1));
      fetch(list.starts(r + 1));
    }
    groups_.score_means(list, *index, index->clusters(), index->groups(), at);
    const std::span<const std::uint16_t> starts = list.starts(r), groups = list.group_starts(r);
    for (std::uint32_t g = 0; g < index->groups(); ++g)
      groups_.size[at + g] = static_cast<float>(starts[groups[g + 1]] - starts[groups[g]]);
    at += index->groups();
  }
  groups_.weigh(list);
  at = 0;
  for (const SketchIndex* index : list.indexes) {
    if (!index) continue;
    groups_.rate(list, index->spreads(list.asked->head).data() + index->clusters(), index->groups(),
                 at);
    at += index->groups();
  }
  groups_.add_ratings(list, list.groups);
}

// The clusters of a run's groups that were taken, and of the groups beside them as many as have
// rows in the same sixteens: those are looked at whole.
void SketchMeans::add_patches(const SketchList& list, std::uint32_t run, std::size_t first_group) {
  const SketchIndex& index = *list.indexes[run];
  const std::span<const std::uint16_t> starts = list.starts(run), groups = list.group_starts(run);
  for (std::uint32_t g = 0; g < index.groups(); ++g) {
    if (!set_has(taken_groups_, first_group + g) || groups[g] == groups[g + 1]) continue;
    std::uint32_t first = groups[g], last = groups[g + 1];
    const std::uint32_t begin = starts[first] / kSketchGroup * kSketchGroup;
    const std::uint32_t end = std::min(sixteens(starts[last]) * kSketchGroup, index.rows());
    while (starts[first] > begin) --first;
    while (starts[last] < end) ++last;
    if (!patches_.empty() && patches_.back().run == run && first <= patches_.back().last)
      patches_.back().last = std::max(patches_.back().last, last);
    else
      patches_.push_back({run, first, last});
  }
}

// Of each group the rows that are in no patch; and the clusters that patches have of groups that
// were not taken.
void SketchMeans::leave_groups(const SketchList& list) {
  std::size_t p = 0, at = 0;
  float* left = units_.size.data() + clusters_;
  for (std::uint32_t r = 0; r < list.indexes.size(); ++r) {
    const SketchIndex* index = list.indexes[r];
    if (!index) continue;
    const std::span<const std::uint16_t> starts = list.starts(r), groups = list.group_starts(r);
    const auto in_run = [&](std::size_t i) { return i < patches_.size() && patches_[i].run == r; };
    for (std::uint32_t g = 0; g < index->groups(); ++g, ++at) {
      const std::uint32_t begin = groups[g], end = groups[g + 1];
      std::uint32_t rows = starts[end] - starts[begin];
      while (in_run(p) && patches_[p].last <= begin) ++p;
      for (std::size_t q = p; in_run(q) && patches_[q].first < end; ++q) {
        const SketchPatch& patch = patches_[q];
        const std::uint32_t first = std::max(begin, patch.first), last = std::min(end, patch.last);
        rows -= starts[last] - starts[first];
        if (set_has(taken_groups_, at)) continue;
        for (std::uint32_t c = first; c < last; ++c)
          lent_.push_back(static_cast<std::uint32_t>(patch.at + (c - patch.first)));
      }
      left[at] = static_cast<float>(rows);
    }
    while (in_run(p)) ++p;
  }
}

void SketchMeans::rate(const SketchList& list) {
  for (const SketchPatch& patch : patches_)
    units_.rate(list, list.indexes[patch.run]->spreads(list.asked->head).data() + patch.first,
                patch.clusters(), patch.at);
  units_.add_ratings(list, clusters_);
  for (const std::uint32_t cluster : lent_) units_.rating[cluster] = kNever;
}

}  // namespace thermocline
