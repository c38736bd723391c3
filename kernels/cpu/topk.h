// TopkOps over a Vec. Comparisons with what is not a number are false, and max passes it over.
#pragma once

#include <bit>

#include "kernels/cpu/vec.h"
#include "kernels/topk.h"

namespace thermocline {
namespace {

template <typename V>
struct Topk {
  using F = typename V::F;
  static constexpr int L = V::lanes;

  static float largest(const float* value, std::size_t count) {
    constexpr float kNone = -1.0f;
    F lanes = V::set(kNone);
    std::size_t i = 0;
    for (; i + L <= count; i += L) lanes = V::max(V::load(value + i), lanes);
    float most = V::largest(lanes);
    for (; i < count; ++i) most = value[i] > most ? value[i] : most;
    return most;
  }

  static std::size_t count_reaching(const float* value, std::size_t count, float bound) {
    const F least = V::set(bound);
    std::size_t reach = 0, i = 0;
    for (; i + L <= count; i += L)
      reach += static_cast<std::size_t>(std::popcount(V::reaching(V::load(value + i), least)));
    for (; i < count; ++i) reach += value[i] >= bound;
    return reach;
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

  static std::size_t between(const float* value, std::size_t count, float low, float high,
                             float* out) {
    const F least = V::set(low), past = V::set(high);
    std::size_t kept = 0, i = 0;
    for (; i + L <= count; i += L) {
      const F v = V::load(value + i);
      kept += V::keep(out + kept, v, V::reaching(v, least) & ~V::reaching(v, past));
    }
    for (; i < count; ++i)
      if (value[i] >= low && !(value[i] >= high)) out[kept++] = value[i];
    return kept;
  }
};

template <typename V>
constexpr TopkOps make_topk() {
  return {&Topk<V>::largest, &Topk<V>::count_reaching, &Topk<V>::reaching, &Topk<V>::between};
}

}  // namespace
}  // namespace thermocline
