#include "retrieval/select/sketch_options.h"

#include <algorithm>

namespace thermocline {

SketchOptions::Budget SketchOptions::budget(std::uint32_t length, std::uint32_t steady_rows) const {
  const auto rows = [&](double of, std::uint32_t most) {
    const double wanted = of * length;
    const double bounded = most > 0 ? std::min<double>(wanted, most) : wanted;
    return static_cast<std::uint32_t>(std::max(0.0, bounded - steady_rows));
  };
  Budget budget;
  budget.read = std::max(min_rows, rows(share, most_rows));
  if (codes_values()) budget.coded = std::max(budget.read, rows(coded, most_coded));
  return budget;
}

RowLayout SketchOptions::summary_layout(HeadShape shape) {
  constexpr RowFormat kFormat = RowFormat::rotated4;
  return {kFormat, kFormat, 0, row_bytes(kFormat, shape.value_dim)};
}

RowLayout SketchOptions::code_layout(HeadShape shape) const {
  const RowFormat format = value_bits == 2 ? RowFormat::rotated2 : RowFormat::rotated4;
  return {format, format, 0, row_bytes(format, shape.value_dim)};
}

}  // namespace thermocline
