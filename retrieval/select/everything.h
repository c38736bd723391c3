// Reads every row: exact attention, and what every other selector is measured against.
#pragma once

#include "retrieval/select/selector.h"

namespace thermocline {

class EverythingSelector final : public Selector {
 public:
  std::string_view name() const override { return "everything"; }
  SelectorFacts facts() const override { return {.everything = true}; }
  Result<Formation> form(const Sealing&, const Workers&) const override { return Formation{}; }
  Result<Chosen> choose(const LayerQuery& query, const Workers& workers,
                        std::span<ReadList> out) override;
};

}  // namespace thermocline
