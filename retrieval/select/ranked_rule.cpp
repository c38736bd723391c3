#include "retrieval/select/ranked_rule.h"

namespace thermocline {

ChoiceFormat RankedRule::format(HeadShape shape, const RowLayout& layout) const {
  ChoiceFormat format{.head = shape,
                      .bits = 0,
                      .unit = *index_.unit_format(),
                      .key_format = layout.key_format,
                      .value_format = layout.value_format,
                      .key_bytes = layout.key_bytes,
                      .row_bytes = layout.bytes()};
  format.unit.group = options_.rank_of_group();
  if (options_.estimate > 0) {
    const RowLayout summary = index_.summary_layout(shape);
    format.summary_format = summary.value_format;
    format.summary_bytes = summary.value_bytes;
  }
  return format;
}

DeviceRule::Budget RankedRule::budget(std::uint32_t length, std::uint32_t steady_rows,
                                      std::uint32_t sealed) const {
  return {.read = options_.budget(length, steady_rows), .estimated = options_.estimated(sealed)};
}

}  // namespace thermocline
