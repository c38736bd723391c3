// kernels/hadamard.h over a Vec: the same butterflies in the same order, so to the bit the same.
#pragma once

#include <cmath>
#include <cstddef>

#include "kernels/cpu/vec.h"
#include "kernels/hadamard.h"

namespace thermocline {
namespace {

// Those whose halves lie in one register.
template <typename V, int kHalf = 1>
inline typename V::F butterflies(typename V::F v) {
  if constexpr (kHalf >= V::lanes)
    return v;
  else
    return butterflies<V, 2 * kHalf>(V::template butterfly<kHalf>(v));
}

template <typename V>
void rotate(float* x, std::size_t n) {
  constexpr std::size_t L = V::lanes;
  const std::size_t block = n & (~n + 1);
  if (L == 1 || block < L) return hadamard(x, n);
  for (std::size_t i = 0; i < n; i += L) V::store(x + i, butterflies<V>(V::load(x + i)));
  for (std::size_t half = L; half < block; half *= 2)
    for (std::size_t from = 0; from < n; from += 2 * half)
      for (std::size_t i = from; i < from + half; i += L) {
        const auto a = V::load(x + i), b = V::load(x + i + half);
        V::store(x + i, V::add(a, b));
        V::store(x + i + half, V::sub(a, b));
      }
  const auto scale = V::set(1.0f / std::sqrt(static_cast<float>(block)));
  for (std::size_t i = 0; i < n; i += L) V::store(x + i, V::mul(V::load(x + i), scale));
}

}  // namespace
}  // namespace thermocline
