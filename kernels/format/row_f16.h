// Channels as f16, one after the other.
#pragma once

#include "kernels/base/half.h"
#include "kernels/format/row.h"

namespace thermocline {
namespace {

struct RowF16 {
  static constexpr RowFormat kFormat = RowFormat::f16;
  static constexpr bool kRotated = false;
  static constexpr std::uint32_t bytes(std::uint32_t dim) { return 2 * dim; }
  static float value(const std::byte* row, std::uint32_t, std::uint32_t i) {
    return to_float(reinterpret_cast<const f16*>(row)[i]);
  }

  template <typename V>
  struct Reader {
    Reader(const std::byte* row, std::uint32_t) : channels(reinterpret_cast<const f16*>(row)) {}
    typename V::F load(std::uint32_t group, std::uint32_t at) const {
      return V::load(channels + group + at);
    }

    const f16* channels;
  };
};

}  // namespace
}  // namespace thermocline
