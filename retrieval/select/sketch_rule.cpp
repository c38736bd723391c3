#include "retrieval/select/sketch_rule.h"

#include "retrieval/index/sketch_index.h"

namespace thermocline {

ChoiceFormat SketchRule::format(HeadShape shape, const RowLayout& layout) const {
  const RowLayout summary = SketchOptions::summary_layout(shape);
  const RowLayout code = options_.code_layout(shape);
  return {.head = shape,
          .bits = static_cast<int>(options_.bits),
          .key_format = layout.key_format,
          .value_format = layout.value_format,
          .key_bytes = layout.key_bytes,
          .row_bytes = layout.bytes(),
          .summary_format = summary.value_format,
          .summary_bytes = summary.value_bytes,
          .residual_format = code.value_format,
          .residual_bytes = code.value_bytes};
}

DeviceRule::Budget SketchRule::budget(std::uint32_t length, std::uint32_t steady_rows,
                                      std::uint32_t) const {
  const SketchOptions::Budget wanted = options_.budget(length, steady_rows);
  return {wanted.read, wanted.coded};
}

IndexedRows SketchRule::indexed(HeadShape, const Run& run, std::uint32_t head) const {
  const auto& sketch = static_cast<const SketchIndex&>(*run.index);
  return {.rows = sketch.rows(),
          .units = sketch.clusters(),
          .codes = sketch.codes(head),
          .scales = sketch.scales(head),
          .unit_keys = sketch.means(head),
          .unit_key_bytes = sketch.mean_bytes(),
          .starts = sketch.starts(head).data()};
}

}  // namespace thermocline
