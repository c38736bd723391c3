#include "retrieval/index/near_keys.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>

#include "retrieval/in_tasks.h"
#include "retrieval/index/grouped.h"
#include "retrieval/index/key_clusters.h"
#include "retrieval/index/kmeans.h"

namespace thermocline {
namespace {

constexpr std::size_t kTaskClusters = 8;
// Among how many clusters of about how many keys a key's nearest are looked for, and how many of
// them are then pruned.
constexpr std::size_t kClusterKeys = 64, kAround = 6, kCandidates = 48;

class NearKeys {
 public:
  NearKeys(const KeyRows& keys, const LinkPruner& pruner, std::size_t wanted, const CpuTable& cpu,
           const Workers& workers)
      : rows_(keys),
        pruner_(pruner),
        keys_(keys.count),
        dim_(keys.dim),
        wanted_(wanted),
        cpu_(cpu),
        workers_(workers) {}

  std::vector<std::uint32_t> find() const {
    const Clusters clusters = cluster();
    std::vector<std::uint32_t> near(keys_ * wanted_, kNoKey);
    in_tasks(clusters.rows.groups(), 1, workers_, [&](std::size_t first, std::size_t last) {
      for (std::size_t c = first; c < last; ++c) find_near(clusters, c, near.data());
    });
    return near;
  }

 private:
  struct Clusters {
    Grouped rows;
    std::vector<std::uint32_t> around;  // [clusters][kAround] nearest ones, itself first
  };

  Clusters cluster() const {
    const std::size_t count = (keys_ + kClusterKeys - 1) / kClusterKeys;
    std::vector<float> mean(dim_), key(keys_ * dim_);
    for (std::size_t k = 0; k < keys_; ++k) {
      float* of = key.data() + k * dim_;
      cpu_.dense.from_half(rows_.row(k), dim_, of);
      for (std::size_t d = 0; d < dim_; ++d) {
        if (!std::isfinite(of[d])) of[d] = 0.0f;
        mean[d] += of[d] / static_cast<float>(keys_);
      }
    }
    const std::vector<float> direction = directions(key, mean, workers_);
    std::vector<std::uint32_t> cluster(keys_);
    kmeans(direction.data(), keys_, dim_, count, {}, cpu_.nearest, workers_, cluster);
    Clusters made;
    made.rows = Grouped::by(keys_, count, [&](std::size_t k) { return cluster[k]; });
    find_around(direction, &made);
    return made;
  }

  // The clusters whose mean directions are nearest to each one's.
  void find_around(const std::vector<float>& direction, Clusters* made) const {
    const std::size_t count = made->rows.groups();
    std::vector<float> middle(count * dim_);
    for (std::size_t c = 0; c < count; ++c)
      for (const std::uint32_t k : made->rows.of(c))
        for (std::size_t d = 0; d < dim_; ++d)
          middle[c * dim_ + d] +=
              direction[k * dim_ + d] / static_cast<float>(made->rows.of(c).size());
    std::vector<f16> half(middle.size());
    cpu_.dense.to_half(middle.data(), middle.size(), half.data());
    const std::size_t wanted = std::min(kAround, count);
    made->around.resize(count * wanted);
    in_tasks(count, kTaskClusters, workers_, [&](std::size_t first, std::size_t last) {
      std::vector<float> score((last - first) * count);
      cpu_.sketch.dot_rows(RowFormat::f16, reinterpret_cast<const std::byte*>(half.data()),
                           dim_ * sizeof(f16), count, dim_, middle.data() + first * dim_,
                           static_cast<int>(last - first), score.data(), count);
      std::vector<std::pair<float, std::uint32_t>> near(count);
      for (std::size_t c = first; c < last; ++c) {
        for (std::uint32_t o = 0; o < count; ++o)
          near[o] = {
              o == c ? -std::numeric_limits<float>::infinity() : -score[(c - first) * count + o],
              o};
        std::partial_sort(near.begin(), near.begin() + static_cast<std::ptrdiff_t>(wanted),
                          near.end());
        for (std::size_t i = 0; i < wanted; ++i) made->around[c * wanted + i] = near[i].second;
      }
    });
  }

  // What is near the keys of one cluster, to near [key][wanted_].
  void find_near(const Clusters& clusters, std::size_t c, std::uint32_t* near) const {
    const std::size_t around = clusters.around.size() / clusters.rows.groups();
    std::vector<f16> other;  // of all clusters around
    std::vector<std::uint32_t> id, candidates;
    for (std::size_t a = 0; a < around; ++a)
      for (const std::uint32_t k : clusters.rows.of(clusters.around[c * around + a])) {
        id.push_back(k);
        other.insert(other.end(), rows_.row(k), rows_.row(k + 1));
      }
    std::vector<float> key(dim_), score(id.size());
    std::vector<std::pair<float, std::uint32_t>> best(id.size());
    LinkPruner::Scratch scratch;
    for (const std::uint32_t k : clusters.rows.of(c)) {
      cpu_.dense.from_half(rows_.row(k), dim_, key.data());
      cpu_.sketch.dot_rows(RowFormat::f16, reinterpret_cast<const std::byte*>(other.data()),
                           dim_ * sizeof(f16), id.size(), dim_, key.data(), 1, score.data(),
                           id.size());
      for (std::size_t i = 0; i < id.size(); ++i) {
        const float distance = pruner_.half_square(id[i]) - score[i];
        best[i] = {std::isfinite(distance) ? distance : std::numeric_limits<float>::max(), id[i]};
      }
      const std::size_t kept = std::min(std::max(kCandidates, wanted_) + 1, best.size());
      std::nth_element(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(kept - 1),
                       best.end());
      candidates.clear();
      for (std::size_t i = 0; i < kept; ++i)
        if (best[i].second != k) candidates.push_back(best[i].second);
      pruner_.prune(k, candidates, wanted_, &scratch, near + k * wanted_);
    }
  }

  const KeyRows& rows_;
  const LinkPruner& pruner_;
  std::size_t keys_, dim_, wanted_;
  const CpuTable& cpu_;
  const Workers& workers_;
};

}  // namespace

std::vector<std::uint32_t> find_near_keys(const KeyRows& keys, const LinkPruner& pruner,
                                          std::size_t wanted, const CpuTable& cpu,
                                          const Workers& workers) {
  return NearKeys(keys, pruner, wanted, cpu, workers).find();
}

}  // namespace thermocline
