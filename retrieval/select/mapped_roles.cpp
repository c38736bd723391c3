#include "retrieval/select/mapped_roles.h"

namespace thermocline {

Result<Formation> MappedRolesSelector::form(const Sealing& sealing, const Workers&) const {
  const std::uint32_t layer = index(sealing.layer), heads = sealing.rows.heads;
  if (map_.heads(layer) != heads)
    return fail(ErrorCode::invalid_argument, map_.name(), ": it has ", map_.heads(layer),
                " KV heads in layer ", layer, ", and the model ", heads,
                ": name the map of this model, or say --method-set select.heads=measured");
  return Formation{};
}

Result<Chosen> MappedRolesSelector::choose(const LayerQuery& query, const Workers&,
                                           std::span<ReadList> out) {
  TL_CHECK(query.lists.size() == out.size());
  for (std::size_t l = 0; l < out.size(); ++l) {
    const ListQuery& list = query.lists[l];
    // Before anything was sealed there is nothing to read, and the map may be of another model.
    if (!list.runs.empty() && map_.reads_everything(index(query.layer), list.head))
      out[l].take_all(list.runs.size());
    else
      out[l].clear();
  }
  return Chosen{};
}

}  // namespace thermocline
