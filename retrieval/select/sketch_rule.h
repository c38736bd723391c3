// A sketch, as a device is told of it.
#pragma once

#include "retrieval/select/device_rule.h"
#include "retrieval/select/sketch_options.h"

namespace thermocline {

class SketchRule final : public DeviceRule {
 public:
  explicit SketchRule(const SketchOptions& options) : options_(options) {}

  ChoiceFormat format(HeadShape shape, const RowLayout& layout) const override;
  Budget budget(std::uint32_t length, std::uint32_t steady_rows,
                std::uint32_t sealed) const override;
  std::uint32_t units(std::uint32_t rows) const override { return options_.clusters(rows); }
  IndexedRows indexed(HeadShape shape, const Run& run, std::uint32_t head) const override;

 private:
  SketchOptions options_;
};

}  // namespace thermocline
