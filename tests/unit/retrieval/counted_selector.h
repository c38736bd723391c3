// A selector that reads one row more each time that it is asked, so that a list says which call
// made it.
#pragma once

#include "retrieval/select/selector.h"

namespace thermocline {

class CountedSelector final : public Selector {
 public:
  struct Calls {
    int asked = 0;
    bool estimates = false;
  };
  explicit CountedSelector(Calls* calls, RowOrder order = RowOrder::position)
      : calls_(*calls), order_(order) {}
  std::string_view name() const override { return "counted"; }
  SelectorFacts facts() const override { return {.order = order_}; }
  Result<Formation> form(const Sealing&, const Workers&) const override { return Formation{}; }
  Result<Chosen> choose(const LayerQuery& query, const Workers&, std::span<ReadList> out) override {
    for (std::size_t l = 0; l < query.lists.size(); ++l) {
      out[l].clear();
      out[l].reads.push_back({.run = 0, .first = 0, .last = 1});
      out[l].picks.push_back({0, first_rows(++calls_.asked)});
      if (calls_.estimates) out[l].log_weight.push_back(0.5f);
    }
    return Chosen{100};
  }

 private:
  Calls& calls_;
  RowOrder order_;
};

// Which call of a CountedSelector made it; 0: it reads everything.
inline int call_of(const ReadList& list) {
  return list.reads.at(0).everything ? 0 : count(list.picks.at(0).rows);
}

}  // namespace thermocline
