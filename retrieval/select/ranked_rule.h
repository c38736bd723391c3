// Units of rows that an index scores, as a device is told of them.
#pragma once

#include "retrieval/index/key_index.h"
#include "retrieval/select/device_rule.h"
#include "retrieval/select/ranked_options.h"

namespace thermocline {

class RankedRule final : public DeviceRule {
 public:
  // Whether a device can choose so: by such an index, as many rows in every layer, whatever the
  // attention.
  static bool holds(const KeyIndex& index, const RankedOptions& options) {
    return index.unit_format().has_value() && options.mass == 0 && options.dense_layers == 0;
  }
  // holds(). `index` outlives it.
  RankedRule(const KeyIndex& index, const RankedOptions& options)
      : index_(index), options_(options) {}

  ChoiceFormat format(HeadShape shape, const RowLayout& layout) const override;
  Budget budget(std::uint32_t length, std::uint32_t steady_rows,
                std::uint32_t sealed) const override;
  std::uint32_t units(std::uint32_t rows) const override { return index_.most_units(rows); }
  IndexedRows indexed(HeadShape shape, const Run& run, std::uint32_t head) const override {
    return index_.indexed(shape, *run.index, head);
  }

 private:
  const KeyIndex& index_;
  RankedOptions options_;
};

}  // namespace thermocline
