#include "retrieval/index/kmeans.h"

#include <algorithm>
#include <cmath>
#include <vector>

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
  float* row(std::size_t c) { return centre_.data() + c * dim_; }

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

// The rows in the order of their groups, and where each group begins.
struct Grouped {
  std::vector<std::size_t> begin;
  std::vector<float> data;
};

Grouped group(const Rows& rows, std::size_t groups, const std::vector<std::uint32_t>& of_row) {
  Grouped out{std::vector<std::size_t>(groups + 1), std::vector<float>(rows.count * rows.dim)};
  for (const std::uint32_t g : of_row) ++out.begin[g + 1];
  for (std::size_t g = 0; g < groups; ++g) out.begin[g + 1] += out.begin[g];
  std::vector<std::size_t> next(out.begin.begin(), out.begin.end() - 1);
  for (std::size_t r = 0; r < rows.count; ++r)
    std::copy_n(rows.row(r), rows.dim, out.data.data() + next[of_row[r]]++ * rows.dim);
  return out;
}

}  // namespace

void kmeans(const float* data, std::size_t count, std::size_t dim, std::size_t clusters,
            const KmeansOptions& options, const NearestOps& ops, const Workers& workers,
            std::span<std::uint32_t> cluster) {
  TL_CHECK(clusters >= 1 && clusters <= count && cluster.size() == count);
  TL_CHECK(options.final_passes >= 1);
  const Rows rows{data, count, dim};

  const std::size_t groups =
      static_cast<std::size_t>(std::lround(std::sqrt(static_cast<double>(clusters))));
  Centres middle(groups, dim);
  middle.start_at_even_rows(rows);
  std::vector<std::uint32_t> of_row(count);
  for (int i = 0;; ++i) {
    search(rows, &middle, ops, workers, of_row.data());
    if (i >= options.group_iterations) break;
    middle.move(rows, of_row.data());
  }

  // Each group gets clusters in proportion to its rows: those of group g are [share(g), share(g + 1)).
  const Grouped grouped = group(rows, groups, of_row);
  const auto share = [&](std::size_t g) {
    return (grouped.begin[g] * clusters + count / 2) / count;
  };
  Centres all(clusters, dim);
  workers.parallel(groups, 1, [&](std::size_t first, std::size_t last) {
    std::vector<std::uint32_t> nearest;
    for (std::size_t g = first; g < last; ++g) {
      const std::size_t mine = share(g + 1) - share(g);
      if (mine == 0) continue;
      const Rows part{grouped.data.data() + grouped.begin[g] * dim,
                      grouped.begin[g + 1] - grouped.begin[g], dim};
      Centres inside(mine, dim);
      inside.start_at_even_rows(part);
      nearest.resize(part.count);
      for (int i = 0; i < options.cluster_iterations; ++i) {
        search(part, &inside, ops, nearest.data());
        inside.move(part, nearest.data());
      }
      std::copy_n(inside.row(0), mine * dim, all.row(share(g)));
    }
  });

  for (int i = 0;; ++i) {
    search(rows, &all, ops, workers, cluster.data());
    if (i + 1 >= options.final_passes) break;
    all.move(rows, cluster.data());
  }
}

}  // namespace thermocline
