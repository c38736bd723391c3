// IQ4_NL: 32 values of 4 bits each, which choose one of 16 levels that lie closer together near
// zero; times one scale. As llama.cpp stores it.
#pragma once

#include "kernels/format/group.h"

namespace thermocline {
namespace {

struct Iq4Nl {
  struct Block {
    f16 scale;
    std::uint8_t nibble[16];  // low halves: values 0 to 15; high halves: 16 to 31
  };
  static_assert(sizeof(Block) == 18);

  static constexpr float kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};

  static float value(const Block& b, int i) {
    const int nibble = i < 16 ? b.nibble[i] & 15 : b.nibble[i - 16] >> 4;
    return to_float(b.scale) * kLevels[nibble];
  }

  template <typename V>
  static typename V::F load(const Block& b, std::uint32_t i) {
    return V::look_up(kLevels, V::set(b.scale), V::zero(), b.nibble, i);
  }
};

}  // namespace
}  // namespace thermocline
