// The scales of Q4_K and Q5_K: eight scales and eight offsets of 6 bits each in 12 bytes, times
// the block's own two.
#pragma once

#include <cstring>

#include "kernels/format/group.h"

namespace thermocline {
namespace {

struct KScales {
  f16 scale, offset;
  // Bytes 0 to 3: the scales of groups 0 to 3 in the low 6 bits; 4 to 7: their offsets. Groups 4
  // to 7 have their low 4 bits in bytes 8 to 11 (scale in the low half, offset in the high half)
  // and their high 2 bits on top of bytes 0 to 3 and 4 to 7.
  std::uint8_t packed[12];

  constexpr int group_scale(int g) const {
    return g < 4 ? packed[g] & 63 : (packed[g + 4] & 15) | (packed[g - 4] >> 6) << 4;
  }
  constexpr int group_offset(int g) const {
    return g < 4 ? packed[g + 4] & 63 : packed[g + 4] >> 4 | (packed[g] >> 6) << 4;
  }
  // The roundings of the format: each product is a float, and the offset is subtracted.
  constexpr float value(int g, int word) const {
    const float by = to_float(scale) * static_cast<float>(group_scale(g));
    return by * static_cast<float>(word) - to_float(offset) * static_cast<float>(group_offset(g));
  }

  template <typename V>
  Scales<V, 8> unpack() const {
    // Four bytes at a time, as the bits lie.
    std::uint32_t low[3];
    std::memcpy(low, packed, sizeof low);
    constexpr std::uint32_t k6 = 0x3f3f3f3f, k4 = 0x0f0f0f0f, k2 = 0x03030303;
    const std::uint32_t scale_bits[2] = {low[0] & k6, (low[2] & k4) | (low[0] >> 6 & k2) << 4};
    const std::uint32_t offset_bits[2] = {low[1] & k6, (low[2] >> 4 & k4) | (low[1] >> 6 & k2)
                                                                                << 4};
    std::uint8_t scale_of[8], offset_of[8];
    std::memcpy(scale_of, scale_bits, 8);
    std::memcpy(offset_of, offset_bits, 8);
    const float by = V::to_float(scale), minus = -V::to_float(offset);
    Scales<V, 8> s;
    for (int g = 0; g < 8; ++g) {
      s.scale[g] = V::set(by * static_cast<float>(scale_of[g]));
      s.offset[g] = V::set(minus * static_cast<float>(offset_of[g]));
    }
    return s;
  }
};

}  // namespace
}  // namespace thermocline
