#include "retrieval/select/nothing.h"

namespace thermocline {

Result<Chosen> NothingSelector::choose(const LayerQuery& query, const Workers&,
                                       std::span<ReadList> out) {
  TL_CHECK(query.lists.size() == out.size());
  for (ReadList& list : out) list.clear();
  return Chosen{};
}

}  // namespace thermocline
