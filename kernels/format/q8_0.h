// Q8_0: 32 weights of 8 bits times one scale.
#pragma once

#include "kernels/format/group.h"

namespace thermocline {
namespace {

struct Q8_0 {
  static constexpr WeightType kType = WeightType::q8_0;
  static constexpr int kGroups = 1;
  static constexpr bool kOffset = false;

  struct Block {
    f16 scale;
    std::int8_t word[32];
  };
  static_assert(sizeof(Block) == 34);

  static constexpr float value(const Block& b, int i) {
    return static_cast<float>(b.word[i]) * to_float(b.scale);
  }

  template <typename V>
  static Scales<V, 1> scales(const Block& b) {
    return {{V::set(b.scale)}, {V::zero()}};
  }
  template <typename V>
  static void words(const Block& b, int, typename V::I* out) {
    V::i8(b.word, out);
  }
  template <typename V>
  static typename V::F load(const Block& b, std::uint32_t i) {
    return V::mul(V::load(b.word + i), V::set(b.scale));
  }
};

}  // namespace
}  // namespace thermocline
