// Clusters of the keys of one KV head of a sealing: by direction from their common mean, which says
// more of a key's scores than the offset that all keys have.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/table.h"
#include "retrieval/index/kmeans.h"
#include "retrieval/select/selector.h"

namespace thermocline {

struct KeyClusters {
  std::vector<float> keys;           // [rows][key_dim] of the sealing
  std::vector<std::uint32_t> order;  // [rows] of the sealing, by cluster, in a cluster by position
  // [clusters + 1]: cluster c is order[starts[c], starts[c + 1]).
  std::vector<std::uint16_t> starts;
  // [groups + 1]: group g is the clusters [groups[g], groups[g + 1]), which lie near each other.
  std::vector<std::uint16_t> groups;
};

// The keys [rows][dim] less their mean, scaled to length 1; zeros where that is no direction.
std::vector<float> directions(const std::vector<float>& keys, const std::vector<float>& mean,
                              const Workers& workers);

// `clusters`, some of which may be empty. Depends on the rows alone, not on threads. Keys at the
// mean, or not finite, have no direction and lie together. Called by the thread that `workers`
// serves.
KeyClusters cluster_keys(const Sealing& sealing, std::uint32_t head, std::uint32_t clusters,
                         const KmeansOptions& options, const CpuTable& cpu, const Workers& workers);

// The means of one side of the rows of a cluster: out [dim]; zeros where there are none.
void average_rows(const RawRows& rows, std::uint32_t head, std::span<const std::uint32_t> of,
                  const f16* (RawRows::*side)(std::uint32_t, std::uint32_t) const,
                  std::span<double> out);

}  // namespace thermocline
