// A selection that outlives the call that made it: for the next step of a timeline in the same
// layer and KV head (retrieval/select/reuse.h), or for later layers of the same step
// (retrieval/select/share.h).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attend.h"
#include "tiers/block.h"

namespace thermocline {

struct KeptSelection {
  bool made = false;         // else nothing is kept
  ReadList list;             // of rows alone: an estimate's scores are of one query
  std::vector<float> query;  // [heads][key_dim] that it was made for; of a shared one, none

  void forget() { made = false; }
  // Room for a selection in so many runs of so many blocks together: keeping one takes no memory
  // then.
  void reserve(HeadShape shape, std::size_t runs, std::size_t blocks) {
    list.reads.reserve(runs);
    list.picks.reserve(blocks);
    query.reserve(std::size_t{shape.heads} * shape.key_dim);
  }
  static std::uint64_t bytes_for(HeadShape shape, std::uint64_t runs, std::uint64_t blocks) {
    return runs * sizeof(Read) + blocks * sizeof(Pick) +
           std::uint64_t{shape.heads} * shape.key_dim * sizeof(float);
  }
};

}  // namespace thermocline
