// The vector words that the CPU kernels are written in. Every kernel is a template over one of
// these structs; kernels/cpu/<isa>.cpp includes its own and instantiates them all. So another
// instruction set is one struct and one file.
//
// A Vec gives, for `lanes` floats F and twice as many 16-bit integers packed in I:
//   F zero, set(x), load(p), store(p, v), load(const f16*), load(const bf16*), store(f16*, v)
//   F add, sub, mul, fma(a, b, c) = a * b + c, max; float sum(v), float largest(v)
//   F load_tail(p, n), store_tail(p, v, n) for the first n < lanes floats
//   F keep_where_above(x, bound, v): v where x > bound, else 0
//   F exp2i(F n): 2^n for integral n in [-126, 127]; F round(v) to nearest even
//   I izero(); I widen_u8(const uint8_t* p), widen_i8(const int8_t* p): 2 * lanes bytes to 16 bits
//   I load_i16(const int16_t* p); F to_float(I sums) of the 32-bit lanes
//   I madd(I a, I b): 32-bit sums of neighbouring 16-bit products; I add32(I a, I b)
// Sums over lanes are taken in a fixed order, so a kernel's bits depend on the Vec alone.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/base/half.h"

namespace thermocline {
namespace {  // each instruction set's file gets its own copy: nothing of it may be shared by name

// e^x for x <= 0 (attention weights): relative error below 2e-7; 0 below -87.
template <typename V>
inline typename V::F exp_nonpositive(typename V::F x) {
  using F = typename V::F;
  const F clamped = V::max(x, V::set(-87.0f));
  const F n = V::round(V::mul(clamped, V::set(1.44269504088896341f)));
  F r = V::fma(n, V::set(-0.693359375f), clamped);
  r = V::fma(n, V::set(2.12194440e-4f), r);
  F p = V::set(1.9875691500e-4f);
  p = V::fma(p, r, V::set(1.3981999507e-3f));
  p = V::fma(p, r, V::set(8.3334519073e-3f));
  p = V::fma(p, r, V::set(4.1665795894e-2f));
  p = V::fma(p, r, V::set(1.6666665459e-1f));
  p = V::fma(p, r, V::set(5.0000001201e-1f));
  const F y = V::add(V::fma(p, V::mul(r, r), r), V::set(1.0f));
  return V::mul(y, V::exp2i(n));
}

}  // namespace
}  // namespace thermocline
