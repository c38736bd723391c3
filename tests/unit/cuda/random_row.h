// A coded row for a test.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "kernels/base/half.h"
#include "kernels/format/row.h"

namespace thermocline::cuda {

// Appends a row of `dim` channels, about as large as `scale`.
inline void add_random_row(RowFormat format, std::uint32_t dim, float scale, std::mt19937* random,
                           std::vector<std::byte>* out) {
  const auto normal = [&] { return std::normal_distribution<float>()(*random); };
  const std::size_t at = out->size();
  out->resize(at + row_bytes(format, dim));
  const std::span<std::byte> row = std::span(*out).subspan(at);
  const auto put = [&](std::size_t byte, float value) {
    const f16 half = to_f16(value);
    std::memcpy(row.data() + byte, &half, sizeof half);
  };
  if (format == RowFormat::f16) {
    for (std::uint32_t i = 0; i < dim; ++i) put(2 * i, normal() * scale);
    return;
  }
  for (std::byte& byte : row) byte = static_cast<std::byte>((*random)());
  if (format == RowFormat::int8)
    put(dim, scale / 64.0f);
  else if (format == RowFormat::q8_0)
    for (std::size_t group = 0; group < row.size(); group += sizeof(f16) + kRowGroup)
      put(group, (normal() + 2.0f) * scale / 128.0f);
  else
    put(row.size() - sizeof(f16), scale);
}

}  // namespace thermocline::cuda
