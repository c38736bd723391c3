// How the kernels read coded weights: 32 at a time (a group, as many as an activation scale
// covers), as 16-bit words with a scale and an offset: weight = scale * word + offset.
//
// A format is one struct in a file of its own, f say, with
//   Block                    a block's bytes as they lie in the file
//   kType, kGroups           which type it is, and how many groups a block has
//   kOffset                  whether its groups have offsets
//   value(block, i)          the definition: weight i of a block, in float arithmetic whose
//                            roundings are part of the format
//   scales<V>(block)         every group's scale and offset
//   words<V>(block, g, out)  group g's words, in kRegisters<V> registers: |word| <= kLargestWord
// and, where the definition rounds otherwise than scale * word + offset does, dequantize<V>. Then
// it has a line in weight.cpp's table and one in visit.h's switch. Weights that are floats
// (floats.h) have no groups.
//
// Rows of KV may be coded so too (row_groups.h) where a block is one group and there is
//   load<V>(block, i)        the floats that value() gives of [i, i + V::lanes), i a multiple of
//                            V::lanes
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/half.h"
#include "kernels/format/weight.h"

namespace thermocline {
namespace {  // compiled once for each instruction set: nothing here may be shared by name

// A product with a 16-bit activation is below 2^27 then, and the 32 / lanes products that meet in
// one of a Vec's 32-bit sums stay below 2^31 for eight lanes and more (for one lane the sum is
// wider, see vec_scalar.h).
inline constexpr int kLargestWord = 4096;

// Each in every lane.
template <typename V, int groups>
struct Scales {
  typename V::F scale[groups];
  typename V::F offset[groups];
};

template <typename V>
inline constexpr int kRegisters = 16 / V::lanes;  // that hold a group's words

}  // namespace
}  // namespace thermocline
