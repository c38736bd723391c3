// Reads every row: exact attention, and what every other selector is measured against.
#pragma once

#include "retrieval/select/selector.h"

namespace thermocline {

class EverythingSelector final : public Selector {
 public:
  SelectorFacts facts() const override { return {.name = "everything"}; }
  Result<Formation> form(const Sealing&, const Workers&) const override { return Formation{}; }
  Result<Chosen> choose(const LayerQuery& query, const Workers& workers,
                        std::span<ReadList> out) override;
};

}  // namespace thermocline
