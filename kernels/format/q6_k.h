// Q6_K: 256 weights, 6 bits each, from -32 to 31; every 16 have an 8-bit scale of their own, times
// the block's.
#pragma once

#include "kernels/format/group.h"

namespace thermocline {
namespace {

struct Q6K {
  static constexpr WeightType kType = WeightType::q6_k;
  static constexpr int kGroups = 8;
  static constexpr bool kOffset = false;

  struct Block {
    std::uint8_t nibble[128];  // of 4 groups in 64 bytes: low halves 0 and 1, high halves 2 and 3
    std::uint8_t top[64];      // of 4 groups in 32 bytes: 2 bits each, the first group lowest
    std::int8_t part[16];      // the scale of every 16 weights
    f16 scale;
  };
  static_assert(sizeof(Block) == 210);

  static constexpr float value(const Block& b, int i) {
    const int g = i / 32, at = i % 32;
    const int nibble = b.nibble[g / 4 * 64 + g % 2 * 32 + at] >> 4 * (g / 2 % 2) & 15;
    const int top = b.top[g / 4 * 32 + at] >> 2 * (g % 4) & 3;
    const float scale = to_float(b.scale) * static_cast<float>(b.part[i / 16]);
    return scale * static_cast<float>(nibble + 16 * top - 32);
  }

  template <typename V>
  static Scales<V, 8> scales(const Block& b) {
    Scales<V, 8> s;
    for (int g = 0; g < kGroups; ++g) s.scale[g] = V::set(b.scale), s.offset[g] = V::zero();
    return s;
  }
  // With the 16 weights' scales in the words, -32 * -128 at most, all 32 share the block's scale.
  template <typename V>
  static void words(const Block& b, int g, typename V::I* out) {
    typename V::I part[kRegisters<V>];
    V::halves(b.part + 2 * g, part);
    plain_words<V>(b, g, out);
    for (int i = 0; i < kRegisters<V>; ++i) out[i] = V::mul16(out[i], part[i]);
  }
  // (scale * part) * word, for the sign of its zeros.
  template <typename V>
  static void dequantize(const Block& b, float* out) {
    typename V::I word[kRegisters<V>];
    typename V::F value[32 / V::lanes];
    const float scale = V::to_float(b.scale);
    for (int g = 0; g < kGroups; ++g) {
      plain_words<V>(b, g, word);
      V::floats(word, value);
      for (int i = 0; i < 32; i += V::lanes, out += V::lanes) {
        const float part = static_cast<float>(b.part[2 * g + i / 16]);
        V::store(out, V::mul(V::set(scale * part), value[i / V::lanes]));
      }
    }
  }

 private:
  template <typename V>
  static void plain_words(const Block& b, int g, typename V::I* out) {
    typename V::I top[kRegisters<V>];
    V::pick(b.nibble + g / 4 * 64 + g % 2 * 32, 4 * (g / 2 % 2), 15, out);
    V::pick(b.top + g / 4 * 32, 2 * (g % 4) - 4, 3 << 4, top);
    for (int i = 0; i < kRegisters<V>; ++i)
      out[i] = V::sub16(V::add16(out[i], top[i]), V::iset(32));
  }
};

}  // namespace
}  // namespace thermocline
