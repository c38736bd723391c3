// Signed bytes, -127 to 127, times one f16 scale a row, which follows them. The products are exact
// as floats.
#pragma once

#include "kernels/base/half.h"
#include "kernels/format/row.h"

namespace thermocline {
namespace {

struct RowInt8 {
  static constexpr RowFormat kFormat = RowFormat::int8;
  static constexpr bool kRotated = false;
  static constexpr std::uint32_t bytes(std::uint32_t dim) { return dim + 4; }  // scale, padding
  static const std::int8_t* codes(const std::byte* row) {
    return reinterpret_cast<const std::int8_t*>(row);
  }
  static f16 scale(const std::byte* row, std::uint32_t dim) {
    return *reinterpret_cast<const f16*>(row + dim);
  }
  static float value(const std::byte* row, std::uint32_t dim, std::uint32_t i) {
    return static_cast<float>(codes(row)[i]) * to_float(scale(row, dim));
  }

  template <typename V>
  struct Reader {
    Reader(const std::byte* row, std::uint32_t dim)
        : channels(codes(row)), by(V::set(scale(row, dim))) {}
    typename V::F load(std::uint32_t group, std::uint32_t at) const {
      return V::mul(V::load(channels + group + at), by);
    }

    const std::int8_t* channels;
    typename V::F by;
  };
};

}  // namespace
}  // namespace thermocline
