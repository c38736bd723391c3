// Spherical k-means of the rows of one head: in two levels, then once over everything.
//
// A search among all centres costs rows x centres; done in every iteration, it would be most of a
// prefill. So rows first settle into about sqrt(centres) groups, each group is clustered by itself,
// and only at the end each row looks at every centre. The result depends on the rows alone: starts
// are evenly spaced rows, sums are taken in row order, equals go to the lower centre.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/base/workers.h"
#include "kernels/nearest.h"

namespace thermocline {

struct KmeansOptions {
  int group_iterations = 4;    // of the groups
  int cluster_iterations = 6;  // of the clusters inside each group
  int final_passes = 1;        // searches among all centres, at least 1
};

// cluster[r] in [0, clusters) for each of the rows [count][dim], which are of length 1 or 0; some
// clusters may get no row. 1 <= clusters <= count.
void kmeans(const float* rows, std::size_t count, std::size_t dim, std::size_t clusters,
            const KmeansOptions& options, const NearestOps& ops, const Workers& workers,
            std::span<std::uint32_t> cluster);

}  // namespace thermocline
