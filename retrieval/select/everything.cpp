#include "retrieval/select/everything.h"

namespace thermocline {

ChoiceFormat EverythingRule::format(HeadShape shape, const RowLayout& layout) const {
  return {.head = shape,
          .bits = 0,
          .everything = true,
          .key_format = layout.key_format,
          .value_format = layout.value_format,
          .key_bytes = layout.key_bytes,
          .row_bytes = layout.bytes()};
}

Result<Chosen> EverythingSelector::choose(const LayerQuery& query, const Workers&,
                                          std::span<ReadList> out) {
  TL_CHECK(query.lists.size() == out.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i].take_all(query.lists[i].runs.size());
  return Chosen{};
}

}  // namespace thermocline
