#include "retrieval/select/everything.h"

namespace thermocline {

Result<Chosen> EverythingSelector::choose(const LayerQuery& query, const Workers&,
                                          std::span<ReadList> out) {
  TL_CHECK(query.lists.size() == out.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i].clear();
    for (std::uint32_t run = 0; run < query.lists[i].runs.size(); ++run)
      out[i].reads.push_back({.run = run, .everything = true});
  }
  return Chosen{};
}

}  // namespace thermocline
