#include "retrieval/select/everything.h"

namespace thermocline {

Chosen EverythingSelector::choose(HeadShape, std::span<const ListQuery> lists, const SummaryRows&,
                                  const Workers&, std::span<ReadList> out) {
  TL_CHECK(lists.size() == out.size());
  for (std::size_t i = 0; i < lists.size(); ++i) {
    out[i].clear();
    for (std::uint32_t run = 0; run < lists[i].runs.size(); ++run)
      out[i].reads.push_back({.run = run, .everything = true});
  }
  return {};
}

}  // namespace thermocline
