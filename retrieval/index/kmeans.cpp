#include "retrieval/index/kmeans.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/base/error.h"

namespace thermocline {
namespace {

// Rows a task: whole tiles of every instruction set.
constexpr std::size_t kTaskRows = 240;

struct Rows {
  const float* data = nullptr;
  std::size_t count = 0, dim = 0;
  const float* row(std::size_t r) const { return data + r * dim; }
};

class Centres {
 public:
  Centres(std::size_t count, std::size_t dim)
      : count_(count),
        dim_(dim),
        centre_(count * dim),
        panels_((count + kCentrePanel - 1) / kCentrePanel * kCentrePanel * dim) {}

  std::size_t count() const { return count_; }
  std::size_t dim() const { return dim_; }
  float* row(std::size_t c) { return centre_.data() + c * dim_; }
  const float* row(std::size_t c) const { return centre_.data() + c * dim_; }

  void start_at_even_rows(const Rows& rows) {
    for (std::size_t c = 0; c < count_; ++c)
      std::copy_n(rows.row((2 * c + 1) * rows.count / (2 * count_)), dim_, row(c));
  }

  // The mean direction of each centre's rows; one without rows stays where it is.
  void move(const Rows& rows, const std::uint32_t* nearest) {
    std::vector<float> sum(count_ * dim_);
    for (std::size_t r = 0; r < rows.count; ++r) {
      float* to = sum.data() + nearest[r] * dim_;
      const float* from = rows.row(r);
      for (std::size_t d = 0; d < dim_; ++d) to[d] += from[d];
    }
    for (std::size_t c = 0; c < count_; ++c) {
      const float* from = sum.data() + c * dim_;
      float squares = 0.0f;
      for (std::size_t d = 0; d < dim_; ++d) squares += from[d] * from[d];
      if (!(squares > 0.0f)) continue;
      const float scale = 1.0f / std::sqrt(squares);
      for (std::size_t d = 0; d < dim_; ++d) row(c)[d] = from[d] * scale;
    }
  }

  const float* panels() {
    const std::size_t padded = (count_ + kCentrePanel - 1) / kCentrePanel * kCentrePanel;
    for (std::size_t c = 0; c < padded; ++c) {
      const float* from = row(std::min(c, count_ - 1));
      float* to = panels_.data() + c / kCentrePanel * kCentrePanel * dim_ + c % kCentrePanel;
      for (std::size_t d = 0; d < dim_; ++d) to[d * kCentrePanel] = from[d];
    }
    return panels_.data();
  }

 private:
  std::size_t count_, dim_;
  std::vector<float> centre_, panels_;
};

void search(const Rows& rows, Centres* centres, const NearestOps& ops, std::uint32_t* nearest) {
  ops.nearest(rows.data, rows.count, rows.dim, centres->panels(), centres->count(), nearest);
}

void search(const Rows& rows, Centres* centres, const NearestOps& ops, const Workers& workers,
            std::uint32_t* nearest) {
  const float* panels = centres->panels();
  const std::size_t tasks = (rows.count + kTaskRows - 1) / kTaskRows;
  workers.parallel(tasks, 1, [&](std::size_t first, std::size_t last) {
    const std::size_t from = first * kTaskRows, to = std::min(last * kTaskRows, rows.count);
    ops.nearest(rows.row(from), to - from, rows.dim, panels, centres->count(), nearest + from);
  });
}

// The rows in the order of their groups: group g has [begin[g], begin[g + 1]).
struct Grouped {
  std::vector<std::size_t> begin;
  std::vector<std::uint32_t> row;  // which row it was
  std::vector<float> data;

  Rows part(std::size_t g, std::size_t dim) const {
    return {data.data() + begin[g] * dim, begin[g + 1] - begin[g], dim};
  }
};

Grouped group(const Rows& rows, std::size_t groups, const std::vector<std::uint32_t>& of_row) {
  Grouped out{std::vector<std::size_t>(groups + 1), std::vector<std::uint32_t>(rows.count),
              std::vector<float>(rows.count * rows.dim)};
  for (const std::uint32_t g : of_row) ++out.begin[g + 1];
  for (std::size_t g = 0; g < groups; ++g) out.begin[g + 1] += out.begin[g];
  std::vector<std::size_t> next(out.begin.begin(), out.begin.end() - 1);
  for (std::uint32_t r = 0; r < rows.count; ++r) {
    const std::size_t at = next[of_row[r]]++;
    out.row[at] = r;
    std::copy_n(rows.row(r), rows.dim, out.data.data() + at * rows.dim);
  }
  return out;
}

// The `wanted` groups with clusters whose middles are nearest to that of g, ascending.
std::vector<std::size_t> groups_around(std::size_t g, std::size_t wanted, const Centres& middles,
                                       const std::vector<std::size_t>& first_cluster) {
  std::vector<std::pair<float, std::size_t>> near;
  for (std::size_t other = 0; other < middles.count(); ++other) {
    if (first_cluster[other] == first_cluster[other + 1]) continue;
    float dot = other == g ? 2.0f : 0.0f;  // itself comes first
    for (std::size_t d = 0; d < middles.dim(); ++d)
      dot += middles.row(g)[d] * middles.row(other)[d];
    near.emplace_back(-dot, other);
  }
  std::sort(near.begin(), near.end());
  near.resize(std::min(near.size(), wanted));
  std::vector<std::size_t> out;
  for (const auto& [distance, other] : near) out.push_back(other);
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

std::size_t kmeans_groups(std::size_t clusters) {
  return static_cast<std::size_t>(std::lround(std::sqrt(static_cast<double>(clusters))));
}

std::vector<std::size_t> kmeans(const float* data, std::size_t count, std::size_t dim,
                                std::size_t clusters, const KmeansOptions& options,
                                const NearestOps& ops, const Workers& workers,
                                std::span<std::uint32_t> cluster) {
  TL_CHECK(clusters >= 1 && clusters <= count && cluster.size() == count);
  TL_CHECK(options.group_iterations >= 0 && options.cluster_iterations >= 0 &&
           options.searched_groups >= 1);
  const Rows rows{data, count, dim};
  const std::size_t groups = kmeans_groups(clusters);

  Centres middles(groups, dim);
  middles.start_at_even_rows(rows);
  std::vector<std::uint32_t> of_row(count);
  for (int i = 0;; ++i) {
    search(rows, &middles, ops, workers, of_row.data());
    if (i >= options.group_iterations) break;
    middles.move(rows, of_row.data());
  }
  const Grouped grouped = group(rows, groups, of_row);

  // A group gets clusters in proportion to its rows; a small one may get none.
  std::vector<std::size_t> first_cluster(groups + 1);
  for (std::size_t g = 0; g <= groups; ++g)
    first_cluster[g] = (grouped.begin[g] * clusters + count / 2) / count;
  std::vector<Centres> inside;
  for (std::size_t g = 0; g < groups; ++g)
    inside.emplace_back(first_cluster[g + 1] - first_cluster[g], dim);
  workers.parallel(groups, 1, [&](std::size_t first, std::size_t last) {
    std::vector<std::uint32_t> nearest;
    for (std::size_t g = first; g < last; ++g) {
      if (inside[g].count() == 0) continue;
      const Rows part = grouped.part(g, dim);
      inside[g].start_at_even_rows(part);
      nearest.resize(part.count);
      for (int i = 0; i < options.cluster_iterations; ++i) {
        search(part, &inside[g], ops, nearest.data());
        inside[g].move(part, nearest.data());
      }
    }
  });

  workers.parallel(groups, 1, [&](std::size_t first, std::size_t last) {
    std::vector<std::uint32_t> nearest, ids;
    for (std::size_t g = first; g < last; ++g) {
      const Rows part = grouped.part(g, dim);
      if (part.count == 0) continue;
      ids.clear();
      const std::vector<std::size_t> around = groups_around(
          g, static_cast<std::size_t>(options.searched_groups), middles, first_cluster);
      for (const std::size_t other : around)
        for (std::size_t c = first_cluster[other]; c < first_cluster[other + 1]; ++c)
          ids.push_back(static_cast<std::uint32_t>(c));
      Centres candidates(ids.size(), dim);
      float* to = candidates.row(0);
      for (const std::size_t other : around)
        to = std::copy_n(inside[other].row(0), inside[other].count() * dim, to);
      nearest.resize(part.count);
      search(part, &candidates, ops, nearest.data());
      for (std::size_t i = 0; i < part.count; ++i)
        cluster[grouped.row[grouped.begin[g] + i]] = ids[nearest[i]];
    }
  });
  return first_cluster;
}

}  // namespace thermocline
