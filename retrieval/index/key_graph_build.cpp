#include "retrieval/index/key_graph_build.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>
#include <vector>

#include "kernels/topk.h"
#include "retrieval/in_tasks.h"
#include "retrieval/index/grouped.h"
#include "retrieval/index/near_keys.h"
#include "retrieval/scratch.h"

namespace thermocline {
namespace {

constexpr std::size_t kTaskQueries = 8;  // that share a pass over the keys
constexpr std::size_t kTaskKeys = 256;
// A key in more lists than this is linked by so many of them, evenly chosen: counts of what it
// shares are no better for more.
constexpr std::size_t kCountedLists = 64;
constexpr std::size_t kCandidates = 200;    // that share most lists with a key
constexpr std::uint32_t kEntriesAList = 4;  // as far as there are entries: 1 finds less, so do 8

class Linking {
 public:
  Linking(const GraphOptions& options, const CpuTable& cpu, const Workers& workers,
          const KeyGraph& graph)
      : options_(options),
        cpu_(cpu),
        workers_(workers),
        graph_(graph),
        keys_(graph.shape().keys),
        dim_(graph.shape().key_dim),
        rows_{graph.key(0), keys_, dim_},
        pruner_(rows_, cpu),
        links_(keys_ * graph.shape().degree),
        linked_(keys_) {}

  // Which keys each sample query likes best.
  void find_lists(const float* queries, std::size_t count) {
    list_ = std::min<std::size_t>(options_.neighbours, keys_);
    lists_.resize(count * list_);
    in_tasks(count, kTaskQueries, workers_, [&](std::size_t first, std::size_t last) {
      const std::size_t n = last - first;
      std::vector<float> score(n * keys_);
      std::vector<RowSet> best(set_words(keys_));
      TopRowsScratch scratch;
      cpu_.sketch.dot_rows(RowFormat::f16, reinterpret_cast<const std::byte*>(graph_.key(0)),
                           dim_ * sizeof(f16), keys_, dim_, queries + first * dim_,
                           static_cast<int>(n), score.data(), keys_);
      for (std::size_t q = 0; q < n; ++q) {
        float* of = score.data() + q * keys_;
        float max = 0, sum = 0;
        cpu_.sketch.weigh(of, keys_, &max, &sum);  // in the order of the scores, none negative
        top_rows(cpu_.topk, {of, keys_}, list_, &scratch, best);
        std::uint32_t* to = lists_.data() + (first + q) * list_;
        std::size_t found = 0;
        for (std::size_t word = 0; word < best.size(); ++word)
          for (RowSet left = best[word]; left != 0; left &= left - 1)
            to[found++] = static_cast<std::uint32_t>(
                word * kBlockRows + static_cast<std::size_t>(std::countr_zero(left)));
        // Keys that are not numbers are in no list; the first found stands in for them.
        std::fill(to + found, to + list_, found > 0 ? to[0] : 0);
      }
    });
    lists_of_ = Grouped::by(lists_.size(), keys_, [&](std::size_t i) { return lists_[i]; });
    for (std::uint32_t& member : lists_of_.member) member /= static_cast<std::uint32_t>(list_);
  }

  // Links each key to those that share most lists with it.
  void link_together() {
    if (lists_.empty()) return;
    const std::size_t most = graph_.shape().degree - 1 - own();
    in_tasks(keys_, kTaskKeys, workers_, [&](std::size_t first, std::size_t last) {
      std::vector<std::uint32_t> shared(keys_), with;
      std::vector<std::pair<float, std::uint32_t>> rated;
      std::vector<std::uint32_t> candidates, taken(most);
      LinkPruner::Scratch scratch;
      for (std::size_t k = first; k < last; ++k) {
        const std::span<const std::uint32_t> lists = lists_of_.of(k);
        const std::size_t step = std::max<std::size_t>(1, lists.size() / kCountedLists);
        with.clear();
        for (std::size_t l = 0; l < lists.size(); l += step)
          for (const std::uint32_t other : std::span(lists_).subspan(lists[l] * list_, list_))
            if (shared[other]++ == 0) with.push_back(other);
        rated.clear();
        for (const std::uint32_t other : with) {
          // Lists of others dampened: what is in all of them says nothing of this key.
          const float in = static_cast<float>(lists_of_.of(other).size());
          if (other != k)
            rated.emplace_back(-static_cast<float>(shared[other]) / std::sqrt(in), other);
          shared[other] = 0;
        }
        const std::size_t kept = std::min<std::size_t>(kCandidates, rated.size());
        std::partial_sort(rated.begin(), rated.begin() + static_cast<std::ptrdiff_t>(kept),
                          rated.end());
        candidates.clear();
        for (std::size_t i = 0; i < kept; ++i) candidates.push_back(rated[i].second);
        const std::size_t count =
            pruner_.prune(static_cast<std::uint32_t>(k), candidates, most, &scratch, taken.data());
        for (std::size_t i = 0; i < count; ++i) add(k, taken[i]);
      }
    });
  }

  // Links each key to some that are near it, and those back where they have room.
  void link_own() {
    const std::vector<std::uint32_t> near = find_near_keys(rows_, pruner_, own(), cpu_, workers_);
    for (std::size_t k = 0; k < keys_; ++k)
      for (std::size_t i = 0; i < own(); ++i)
        if (near[k * own() + i] != kNoKey) add(k, near[k * own() + i]);
    for (std::size_t k = 0; k < keys_; ++k)
      for (std::size_t i = 0; i < own(); ++i)
        if (near[k * own() + i] != kNoKey) add(near[k * own() + i], static_cast<std::uint32_t>(k));
  }

  void write() const {
    for (std::size_t k = 0; k < keys_; ++k) {
      const auto key = static_cast<std::uint32_t>(k);
      if (graph_.shape().link_bytes() == 2)
        write(key, graph_.links<std::uint16_t>(key));
      else
        write(key, graph_.links<std::uint32_t>(key));
    }
    choose_entries();
  }

 private:
  std::size_t own() const {
    const std::size_t room = graph_.shape().degree - 1;
    return lists_.empty() ? room : std::min<std::size_t>(options_.own, room);
  }

  // Greedily: the key that is in most lists with too few entries yet, so that whatever is like one
  // of the sample queries has somewhere to begin. (The keys that are in most lists are in the same
  // ones.) What is left then is spread over all keys.
  void choose_entries() const {
    const std::span<std::uint32_t> entries = graph_.entries();
    std::size_t chosen = 0;
    if (!lists_.empty()) {
      std::vector<std::uint32_t> wanting(keys_);  // of each key's lists
      for (std::size_t k = 0; k < keys_; ++k)
        wanting[k] = static_cast<std::uint32_t>(lists_of_.of(k).size());
      std::vector<std::uint32_t> entries_of(lists_.size() / list_);
      for (; chosen < entries.size(); ++chosen) {
        const auto best = std::max_element(wanting.begin(), wanting.end());
        if (*best == 0) break;
        entries[chosen] = static_cast<std::uint32_t>(best - wanting.begin());
        *best = 0;
        for (const std::uint32_t l : lists_of_.of(entries[chosen])) {
          if (++entries_of[l] != kEntriesAList) continue;
          for (const std::uint32_t key : std::span(lists_).subspan(l * list_, list_))
            if (wanting[key] > 0) --wanting[key];
        }
      }
    }
    for (std::size_t e = chosen; e < entries.size(); ++e)
      entries[e] = static_cast<std::uint32_t>((2 * e + 1) * keys_ / (2 * entries.size()));
  }

  // One place is kept for the next row.
  void add(std::size_t k, std::uint32_t other) {
    const std::span<std::uint32_t> of =
        std::span(links_).subspan(k * graph_.shape().degree, linked_[k]);
    if (other == k || of.size() + 1 >= graph_.shape().degree) return;
    if (std::find(of.begin(), of.end(), other) != of.end()) return;
    links_[k * graph_.shape().degree + linked_[k]++] = other;
  }

  template <typename Link>
  void write(std::uint32_t k, Link* to) const {
    const std::size_t degree = graph_.shape().degree;
    std::fill_n(to, degree, static_cast<Link>(k));
    for (std::size_t i = 0; i < linked_[k]; ++i) to[i] = static_cast<Link>(links_[k * degree + i]);
    to[linked_[k]] = static_cast<Link>((k + 1) % keys_);
  }

  const GraphOptions& options_;
  const CpuTable& cpu_;
  const Workers& workers_;
  const KeyGraph& graph_;
  std::size_t keys_, dim_, list_ = 0;
  KeyRows rows_;
  LinkPruner pruner_;
  std::vector<std::uint32_t> lists_;  // [queries][list_]
  Grouped lists_of_;                  // by key: which lists it is in
  std::vector<std::uint32_t> links_;  // [keys][degree]
  std::vector<std::uint32_t> linked_;
};

}  // namespace

void link_keys(const float* queries, std::size_t count, const GraphOptions& options,
               const CpuTable& cpu, const Workers& workers, const KeyGraph& graph) {
  Linking linking(options, cpu, workers, graph);
  if (count > 0) linking.find_lists(queries, count);
  linking.link_together();
  linking.link_own();
  linking.write();
}

}  // namespace thermocline
