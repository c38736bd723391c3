// Reads every row: exact attention, and what every other selector is measured against.
#pragma once

#include "retrieval/select/device_rule.h"
#include "retrieval/select/selector.h"

namespace thermocline {

// As a device is told of it, of rows that it has.
class EverythingRule final : public DeviceRule {
 public:
  ChoiceFormat format(HeadShape shape, const RowLayout& layout) const override;
  Budget budget(std::uint32_t, std::uint32_t, std::uint32_t sealed) const override {
    return {.read = sealed};
  }
  std::uint32_t units(std::uint32_t) const override { return 0; }
  IndexedRows indexed(HeadShape, const Run& run, std::uint32_t) const override {
    return {.rows = run.rows->rows};
  }
};

class EverythingSelector final : public Selector {
 public:
  std::string_view name() const override { return "everything"; }
  SelectorFacts facts() const override { return {.everything = true}; }
  const DeviceRule* device_rule() const override { return &rule_; }
  Result<Formation> form(const Sealing&, const Workers&) const override { return Formation{}; }
  Result<Chosen> choose(const LayerQuery& query, const Workers& workers,
                        std::span<ReadList> out) override;

 private:
  EverythingRule rule_;
};

}  // namespace thermocline
