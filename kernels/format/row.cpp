#include "kernels/format/row.h"

#include "kernels/format/visit_row.h"
#include "kernels/hadamard.h"

namespace thermocline {

std::optional<RowFormat> row_format_of(std::uint32_t number) {
  const auto asked = static_cast<RowFormat>(number);
  const RowFormat found = visit_row(asked, [](auto coded) { return decltype(coded)::kFormat; });
  return static_cast<std::uint32_t>(found) == number ? std::optional(found) : std::nullopt;
}

std::uint32_t row_bytes(RowFormat format, std::uint32_t dim) {
  return visit_row(format, [&](auto coded) { return decltype(coded)::bytes(dim); });
}

void read_row(RowFormat format, const std::byte* row, std::uint32_t dim, float* out,
              const SideFit& fit, std::uint32_t number) {
  visit_row(format, [&](auto coded) {
    using Format = decltype(coded);
    if constexpr (kFitted<Format>)
      Format::read(fit, number, row, dim, out);
    else
      for (std::uint32_t i = 0; i < dim; ++i) out[i] = Format::value(row, dim, i);
    if (Format::kRotated) hadamard(out, dim);
  });
}

}  // namespace thermocline
