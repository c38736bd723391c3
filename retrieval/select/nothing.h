// Reads no sealed row: sinks and tail alone. The floor that a selection has to beat.
#pragma once

#include "retrieval/select/selector.h"

namespace thermocline {

class NothingSelector final : public Selector {
 public:
  std::string_view name() const override { return "nothing"; }
  SelectorFacts facts() const override { return {}; }
  Result<Formation> form(const Sealing&, const Workers&) const override { return Formation{}; }
  Result<Chosen> choose(const LayerQuery& query, const Workers& workers,
                        std::span<ReadList> out) override;
};

}  // namespace thermocline
