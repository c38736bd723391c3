// KIVI's values at two bits: 32 of them, times a scale, plus an offset (KIVI, arXiv 2402.02750: a
// token's channels in groups of 32, from their least to their largest). At four bits they are Q4_1.
#pragma once

#include "kernels/format/group.h"

namespace thermocline {
namespace {

struct Kivi2 {
  struct Block {
    f16 scale_offset[2];
    std::uint8_t codes[8];  // four a byte, the first lowest
  };
  static_assert(sizeof(Block) == 12);

  static float value(const Block& b, int i) {
    const int code = b.codes[i / 4] >> 2 * (i % 4) & 3;
    return to_float(b.scale_offset[0]) * static_cast<float>(code) + to_float(b.scale_offset[1]);
  }

  template <typename V>
  static typename V::F load(const Block& b, std::uint32_t i) {
    return V::fma(V::template codes<2>(b.codes + i / 4, i), V::set(b.scale_offset[0]),
                  V::set(b.scale_offset[1]));
  }
};

}  // namespace
}  // namespace thermocline
