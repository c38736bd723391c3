// The vector words that the CPU kernels are written in. Every kernel is a template over one of
// these structs; kernels/cpu/<isa>.cpp includes its own and instantiates them all. So another
// instruction set is one struct and one file.
//
// A Vec gives, for `lanes` floats F and twice as many 16-bit integers ("words") packed in I:
//   F zero, set(x), load(p), store(p, v), load(const f16*), load(const bf16*), store(f16*, v)
//   F add, sub, mul, div, fma(a, b, c) = a * b + c, max; float sum(v), float largest(v)
//   F where_negative(x, a, b): a in the lanes where x's sign bit is set, b in the others
//   F load_tail(p, n), store_tail(p, v, n) for the first n < lanes floats
//   F keep_where_above(x, bound, v): v where x > bound, else 0
//   F exp2i(F n): 2^n for integral n in [-126, 127], 0 for -127; F round(v) to nearest even
//   I izero(), iset(x): every word x; I widen_u8(const uint8_t* p), widen_i8(const int8_t* p)
//   I load_i16(const int16_t* p); store_i16(int16_t* p, F v): lanes integral floats as words
//   I add16, sub16, mul16 (low half), bit_and, shift_right(a, n) of words
//   F low(I a), high(I a): the first and the last `lanes` words as floats
//   I madd(I a, I b): 32-bit sums of neighbouring words' products; I add32(I a, I b)
//   F to_float(I sums) of the 32-bit lanes
// and 32 words at once, in the 16 / lanes registers I* out:
//   nibbles(const uint8_t* p, out): 16 bytes: first their low halves, then their high halves
//   bits(const uint8_t* p, value, out): 4 bytes: word i is `value` where bit i is set, else 0
//   halves(a, b, out): 16 words a, then 16 words b
// and for 2-bit codes, four bytes a lane in B:
//   B load_bytes(const uint8_t* p); B quad(const int8_t* p): four bytes, in every lane
//   B crumbs(B v): the two low bits of each byte; B next_crumbs(B v): two bits down, above them any
//   I dot4(I sums, B codes, B quad): adds each lane's four products of codes 0 to 3 and quad's bytes
//   -127 to 127; I dot4_total(I sums): the 32-bit lanes of at most 32 such sums, from izero() on
// Sums over lanes are taken in a fixed order, so a kernel's bits depend on the Vec alone.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/base/half.h"

namespace thermocline {
namespace {  // each instruction set's file gets its own copy: nothing of it may be shared by name

// e^x for x <= 0 (attention weights): relative error below 2e-7; 0 below -87.7, where n is -127.
template <typename V>
inline typename V::F exp_nonpositive(typename V::F x) {
  using F = typename V::F;
  const F clamped = V::max(x, V::set(-88.0f));
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
