// Q4_1: 32 weights, 4 bits each, times a scale, plus an offset.
#pragma once

#include "kernels/format/group.h"

namespace thermocline {
namespace {

struct Q4_1 {
  static constexpr WeightType kType = WeightType::q4_1;
  static constexpr int kGroups = 1;
  static constexpr bool kOffset = true;

  struct Block {
    f16 scale_offset[2];
    std::uint8_t nibble[16];  // low halves: weights 0 to 15; high halves: 16 to 31
  };
  static_assert(sizeof(Block) == 20);

  static constexpr float value(const Block& b, int i) {
    const int nibble = i < 16 ? b.nibble[i] & 15 : b.nibble[i - 16] >> 4;
    return to_float(b.scale_offset[0]) * static_cast<float>(nibble) + to_float(b.scale_offset[1]);
  }

  template <typename V>
  static Scales<V, 1> scales(const Block& b) {
    Scales<V, 1> s;
    V::set_two(b.scale_offset, s.scale, s.offset);
    return s;
  }
  template <typename V>
  static void words(const Block& b, int, typename V::I* out) {
    V::nibbles(b.nibble, out);
  }
  static constexpr float kLevels[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  template <typename V>
  static typename V::F load(const Block& b, std::uint32_t i) {
    return V::look_up(kLevels, V::set(b.scale_offset[0]), V::set(b.scale_offset[1]), b.nibble, i);
  }
};

}  // namespace
}  // namespace thermocline
