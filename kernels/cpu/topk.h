// TopkOps over a Vec. The sets of a block are the lanes, so that no sum across lanes is needed.
#pragma once

#include "kernels/cpu/vec.h"
#include "kernels/topk.h"

namespace thermocline {
namespace {

template <typename V>
struct Topk {
  using F = typename V::F;
  static constexpr int L = V::lanes;

  static void largest(const float* value, std::size_t blocks, float* most) {
    for (std::size_t b = 0; b < blocks; ++b, value += kBlockRows, most += L) {
      F lanes = V::set(-1.0f);
      // In this order what is not a number is passed over.
      for (int i = 0; i < kBlockRows; i += L) lanes = V::max(V::load(value + i), lanes);
      V::store(most, lanes);
    }
  }

  static void reaching(const float* value, std::size_t count, float bound, RowSet* rows) {
    const F least = V::set(bound);
    std::size_t r = 0;
    for (; r + kBlockRows <= count; r += kBlockRows) {
      RowSet set = 0;
      for (int i = 0; i < kBlockRows; i += L)
        set |= RowSet{V::reaching(V::load(value + r + i), least)} << i;
      rows[r / kBlockRows] = set;
    }
    if (r == count) return;
    RowSet rest = 0;
    for (std::size_t i = r; i < count; ++i) rest |= RowSet{value[i] >= bound} << (i - r);
    rows[r / kBlockRows] = rest;
  }
};

template <typename V>
constexpr TopkOps make_topk() {
  return {&Topk<V>::largest, static_cast<std::size_t>(V::lanes), &Topk<V>::reaching};
}

}  // namespace
}  // namespace thermocline
