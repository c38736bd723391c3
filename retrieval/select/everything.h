// Every kept row, every step: full attention, the method that all others are compared with.
#pragma once

#include "retrieval/select/selector.h"

namespace thermocline {

class Everything final : public Selector {
 public:
  SelectorFacts facts() const override { return {.name = "everything"}; }
  Result<Formation> form(const Sealing&, const Workers&) const override { return Formation{}; }
  Chosen choose(HeadShape, std::span<const ListQuery> lists, const SummaryRows&, const Workers&,
                std::span<ReadList> out) override;
};

}  // namespace thermocline
