// Spherical k-means of the rows of one head, in two levels.
//
// A search among all centres costs rows x centres; done in every iteration, it would take as long
// as prefill does. So rows first settle into about sqrt(centres) groups, each group is clustered by
// itself, and at the end each row looks at the centres of the groups around its own. On keys of
// real texts that loses nothing against searching all centres in every iteration. The result
// depends on the rows alone: starts are evenly spaced rows, sums are taken in row order, equals go
// to the lower centre. Clusters of a group are numbered one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/workers.h"
#include "kernels/nearest.h"

namespace thermocline {

struct KmeansOptions {
  int group_iterations = 4;    // of the groups: at least 0
  int cluster_iterations = 6;  // of the clusters inside each group: at least 0
  int searched_groups = 16;    // at the end, a row's own and the nearest to it: at least 1
};

// How many groups so many clusters make.
std::size_t kmeans_groups(std::size_t clusters);

// cluster[r] in [0, clusters) for each of the rows [count][dim], which are of length 1 or 0; some
// clusters may get no row. 1 <= clusters <= count. Returns where the clusters of each group begin,
// and at the end `clusters`: [groups + 1]; some groups may have none. Called by the thread that
// `workers` serves.
std::vector<std::size_t> kmeans(const float* rows, std::size_t count, std::size_t dim,
                                std::size_t clusters, const KmeansOptions& options,
                                const NearestOps& ops, const Workers& workers,
                                std::span<std::uint32_t> cluster);

}  // namespace thermocline
