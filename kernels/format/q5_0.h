// Q5_0: 32 weights, 5 bits each, from -16 to 15, times one scale.
#pragma once

#include "kernels/format/group.h"

namespace thermocline {
namespace {

struct Q5_0 {
  static constexpr WeightType kType = WeightType::q5_0;
  static constexpr int kGroups = 1;
  static constexpr bool kOffset = false;

  struct Block {
    f16 scale;
    std::uint8_t fifth[4];    // bit i: weight i's highest bit
    std::uint8_t nibble[16];  // low halves: weights 0 to 15; high halves: 16 to 31
  };
  static_assert(sizeof(Block) == 22);

  static constexpr float value(const Block& b, int i) {
    const int nibble = i < 16 ? b.nibble[i] & 15 : b.nibble[i - 16] >> 4;
    const int fifth = b.fifth[i / 8] >> i % 8 & 1;
    return to_float(b.scale) * static_cast<float>(nibble + 16 * fifth - 16);
  }

  template <typename V>
  static Scales<V, 1> scales(const Block& b) {
    return {{V::set(b.scale)}, {V::zero()}};
  }
  template <typename V>
  static void words(const Block& b, int, typename V::I* out) {
    typename V::I fifth[kRegisters<V>];
    V::nibbles(b.nibble, out);
    V::bits(b.fifth, 16, fifth);
    for (int i = 0; i < kRegisters<V>; ++i)
      out[i] = V::sub16(V::add16(out[i], fifth[i]), V::iset(16));
  }
  static constexpr float kLevels[16] = {-16, -15, -14, -13, -12, -11, -10, -9,
                                        -8,  -7,  -6,  -5,  -4,  -3,  -2,  -1};
  template <typename V>
  static typename V::F load(const Block& b, std::uint32_t i) {
    return V::look_up(kLevels, V::set(b.scale), V::zero(), b.nibble, b.fifth, i);
  }
};

}  // namespace
}  // namespace thermocline
