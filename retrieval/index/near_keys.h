// For each key of a head some that are near it in distance, spread around it: what a graph links
// keys by that no query spoke for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/base/workers.h"
#include "kernels/cpu/table.h"
#include "retrieval/index/link_pruner.h"

namespace thermocline {

inline constexpr std::uint32_t kNoKey = ~std::uint32_t{0};

// [keys][wanted], kNoKey where there are no more. Candidates are the nearest keys among those of a
// key's own cluster and of the clusters around it, since all pairs would take as long as prefill
// does; `pruner`, of the same keys, chooses among them. Depends on the keys alone.
std::vector<std::uint32_t> find_near_keys(const KeyRows& keys, const LinkPruner& pruner,
                                          std::size_t wanted, const CpuTable& cpu,
                                          const Workers& workers);

}  // namespace thermocline
