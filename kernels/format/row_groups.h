// Groups of 32 channels, one after the other, each bit for bit a block that llama.cpp has under the
// name (q8_0.h and its neighbours; KIVI's is ours). The last group is whole: where the head size is
// not a multiple of 32, the codes of its last 16 channels are zero and nobody reads them.
//
// Products of a code and a scale are exact as floats, so that where an offset is added to one, a
// fused multiply-add has the bits of value().
#pragma once

#include "kernels/format/iq4_nl.h"
#include "kernels/format/kivi2.h"
#include "kernels/format/q4_0.h"
#include "kernels/format/q4_1.h"
#include "kernels/format/q5_0.h"
#include "kernels/format/q5_1.h"
#include "kernels/format/q8_0.h"
#include "kernels/format/row.h"

namespace thermocline {
namespace {

template <typename Q, RowFormat kCoded>
struct RowGroups {
  using Block = typename Q::Block;
  static constexpr RowFormat kFormat = kCoded;
  static constexpr bool kRotated = false;
  static constexpr bool kGrouped = true;
  static constexpr std::uint32_t bytes(std::uint32_t dim) {
    return (dim + kRowGroup - 1) / kRowGroup * sizeof(Block);
  }
  static float value(const std::byte* row, std::uint32_t, std::uint32_t i) {
    return Q::value(reinterpret_cast<const Block*>(row)[i / kRowGroup],
                    static_cast<int>(i % kRowGroup));
  }

  template <typename V>
  struct Reader {
    Reader(const std::byte* row, std::uint32_t) : groups(reinterpret_cast<const Block*>(row)) {}
    typename V::F load(std::uint32_t group, std::uint32_t at) const {
      return Q::template load<V>(groups[group / kRowGroup], at);
    }

    const Block* groups;
  };
};
using RowQ8_0 = RowGroups<Q8_0, RowFormat::q8_0>;
using RowQ4_0 = RowGroups<Q4_0, RowFormat::q4_0>;
using RowQ4_1 = RowGroups<Q4_1, RowFormat::q4_1>;
using RowQ5_0 = RowGroups<Q5_0, RowFormat::q5_0>;
using RowQ5_1 = RowGroups<Q5_1, RowFormat::q5_1>;
using RowIq4Nl = RowGroups<Iq4Nl, RowFormat::iq4_nl>;
using RowKivi2 = RowGroups<Kivi2, RowFormat::kivi2>;

}  // namespace
}  // namespace thermocline
