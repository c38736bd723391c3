#include "retrieval/select/everything.h"

namespace thermocline {

Chosen Everything::choose(HeadShape, std::span<const ListQuery> lists, const SummaryRows&,
                          const Workers&, std::span<ReadList> out) {
  for (std::size_t i = 0; i < lists.size(); ++i)
    for (std::uint32_t run = 0; run < lists[i].runs.size(); ++run)
      out[i].reads.push_back({.run = run, .form = Form::rows, .everything = true});
  return {};
}

}  // namespace thermocline
