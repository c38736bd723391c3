// No kept row at all: a step attends its sinks and its tail only.
#pragma once

#include "retrieval/select/selector.h"

namespace thermocline {

class Nothing final : public Selector {
 public:
  SelectorFacts facts() const override { return {.name = "nothing"}; }
  Result<Formation> form(const Sealing&, const Workers&) const override { return Formation{}; }
  Chosen choose(HeadShape, std::span<const ListQuery>, const SummaryRows&, const Workers&,
                std::span<ReadList>) override {
    return {};
  }
};

}  // namespace thermocline
