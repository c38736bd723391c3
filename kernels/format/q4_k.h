// Q4_K: 256 weights, 4 bits each; every 32 have a scale and an offset of their own.
#pragma once

#include "kernels/format/k_scales.h"

namespace thermocline {
namespace {

struct Q4K {
  static constexpr WeightType kType = WeightType::q4_k;
  static constexpr int kGroups = 8;
  static constexpr bool kOffset = true;

  struct Block {
    KScales scales;
    std::uint8_t nibble[128];  // 32 bytes: group 2j in their low halves, 2j + 1 in their high ones
  };
  static_assert(sizeof(Block) == 144);

  static constexpr float value(const Block& b, int i) {
    const int g = i / 32;
    return b.scales.value(g, b.nibble[g / 2 * 32 + i % 32] >> 4 * (g % 2) & 15);
  }

  template <typename V>
  static Scales<V, 8> scales(const Block& b) {
    return b.scales.unpack<V>();
  }
  template <typename V>
  static void words(const Block& b, int g, typename V::I* out) {
    V::pick(b.nibble + g / 2 * 32, 4 * (g % 2), 15, out);
  }
};

}  // namespace
}  // namespace thermocline
