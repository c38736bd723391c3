// Q5_K: Q4_K with a fifth bit.
#pragma once

#include "kernels/format/k_scales.h"

namespace thermocline {
namespace {

struct Q5K {
  static constexpr WeightType kType = WeightType::q5_k;
  static constexpr int kGroups = 8;
  static constexpr bool kOffset = true;

  struct Block {
    KScales scales;
    std::uint8_t fifth[32];    // bit g of byte i: the highest bit of weight i of group g
    std::uint8_t nibble[128];  // 32 bytes: group 2j in their low halves, 2j + 1 in their high ones
  };
  static_assert(sizeof(Block) == 176);

  static constexpr float value(const Block& b, int i) {
    const int g = i / 32;
    const int nibble = b.nibble[g / 2 * 32 + i % 32] >> 4 * (g % 2) & 15;
    return b.scales.value(g, nibble + 16 * (b.fifth[i % 32] >> g & 1));
  }

  template <typename V>
  static Scales<V, 8> scales(const Block& b) {
    return b.scales.unpack<V>();
  }
  template <typename V>
  static void words(const Block& b, int g, typename V::I* out) {
    typename V::I fifth[kRegisters<V>];
    V::pick(b.nibble + g / 2 * 32, 4 * (g % 2), 15, out);
    V::pick(b.fifth, g - 4, 16, fifth);
    for (int i = 0; i < kRegisters<V>; ++i) out[i] = V::add16(out[i], fifth[i]);
  }
};

}  // namespace
}  // namespace thermocline
