// How the links of a key graph are made, once, when its keys are sealed.
//
//   together   The exact nearest keys of each sample query are a list, so queries and keys are a
//              bipartite graph; projected onto the keys, a key is linked to those that share lists
//              with it. RoarGraph (arXiv 2408.08933, section 4.2) links only the nearest key of a
//              list to the rest of it. Keys of attention are too unequal for that: a few are
//              nearest to most queries, and 5 % of the keys would get links where a third is in
//              lists. So every key of a list is linked, to the keys that it shares most lists with,
//              less those that are in everybody's.
//   own        Keys of which no sample query knew, and decode's, which has no sample: links to the
//              keys that are near in distance, pruned as RoarGraph prunes (a key is passed over
//              that is nearer to one already linked), both ways where there is room.
//   next       And each key to the next row, so that all keys are reachable from any.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/base/workers.h"
#include "kernels/cpu/table.h"
#include "retrieval/index/key_graph.h"
#include "tiers/parameter.h"

namespace thermocline {

struct GraphOptions {
  std::uint32_t degree = 16;      // links of a key, all together
  std::uint32_t own = 6;          // to keys near it, where it has others; else all
  std::uint32_t neighbours = 24;  // the list of a sample query
};

// Links the keys that `graph` has already. `queries` [count][key_dim]: a sample, of all query heads
// alike; none: links by keys alone. Depends on these alone: work is spread over `workers` in pieces
// of a fixed cut, and equals go to the lower key.
void link_keys(const float* queries, std::size_t count, const GraphOptions& options,
               const CpuTable& cpu, const Workers& workers, const KeyGraph& graph);

}  // namespace thermocline
