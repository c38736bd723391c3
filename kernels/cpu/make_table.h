// A CPU table over a Vec: the one list of the operations, which each instruction set's file makes
// its own of.
#pragma once

#include "kernels/cpu/attend.h"
#include "kernels/cpu/dense.h"
#include "kernels/cpu/matvec.h"
#include "kernels/cpu/nearest.h"
#include "kernels/cpu/sketch.h"
#include "kernels/cpu/table.h"
#include "kernels/cpu/topk.h"

namespace thermocline {
namespace {

// Weights may be multiplied by narrower words than the rest: what a block of them needs besides its
// products (a scale, an offset) takes as many instructions at any width, and wide ones are the
// dearer ones (Zen 4, 512 bits for 256: 1.4 times the time for Q4_1, twice for F16).
template <typename V, typename Narrow = V>
constexpr CpuTable make_table(std::string_view name, GemmType gemm) {
  return {
      .name = name,
      .gemm = gemm,
      .attend = make_attend<V>(),
      .dense = make_dense<V>(),
      .matvec = make_matvec<Narrow>(),
      .nearest = make_nearest<V>(),
      .sketch = make_sketch<V>(),
      .topk = make_topk<V>(),
  };
}

}  // namespace
}  // namespace thermocline
