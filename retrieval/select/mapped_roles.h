// roles by a map: as retrieval/select/roles.h, but a file says which heads read every row, so that
// what was found once for a model (DuoAttention, arXiv 2410.10819, section 2.2) serves all texts.
#pragma once

#include <utility>

#include "retrieval/select/head_map.h"
#include "retrieval/select/selector.h"

namespace thermocline {

class MappedRolesSelector final : public Selector {
 public:
  explicit MappedRolesSelector(HeadMap map) : map_(std::move(map)) {}
  std::string_view name() const override { return "roles"; }
  SelectorFacts facts() const override { return {}; }
  std::string fingerprint() const override { return map_.fingerprint(); }
  // Keeps nothing. invalid_argument: the map is of another model.
  Result<Formation> form(const Sealing& sealing, const Workers& workers) const override;
  Result<Chosen> choose(const LayerQuery& query, const Workers& workers,
                        std::span<ReadList> out) override;

 private:
  HeadMap map_;
};

}  // namespace thermocline
