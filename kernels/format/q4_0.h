// Q4_0: 32 weights, 4 bits each, from -8 to 7, times one scale.
#pragma once

#include "kernels/format/group.h"

namespace thermocline {
namespace {

struct Q4_0 {
  static constexpr WeightType kType = WeightType::q4_0;
  static constexpr int kGroups = 1;
  static constexpr bool kOffset = false;

  struct Block {
    f16 scale;
    std::uint8_t nibble[16];  // low halves: weights 0 to 15; high halves: 16 to 31
  };
  static_assert(sizeof(Block) == 18);

  static constexpr float value(const Block& b, int i) {
    const int nibble = i < 16 ? b.nibble[i] & 15 : b.nibble[i - 16] >> 4;
    return to_float(b.scale) * static_cast<float>(nibble - 8);
  }

  template <typename V>
  static Scales<V, 1> scales(const Block& b) {
    return {{V::set(b.scale)}, {V::zero()}};
  }
  template <typename V>
  static void words(const Block& b, int, typename V::I* out) {
    V::nibbles(b.nibble, out);
    for (int i = 0; i < kRegisters<V>; ++i) out[i] = V::sub16(out[i], V::iset(8));
  }
  static constexpr float kLevels[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
  template <typename V>
  static typename V::F load(const Block& b, std::uint32_t i) {
    return V::look_up(kLevels, V::set(b.scale), V::zero(), b.nibble, i);
  }
};

}  // namespace
}  // namespace thermocline
