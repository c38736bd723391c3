// clang-format off: the list below keeps its lines
// The vector words that the CPU kernels are written in. Every kernel is a template over one of
// these structs; kernels/cpu/<isa>.cpp includes its own and instantiates them all. So another
// instruction set is one struct and one file, with its flags in CMakeLists.txt; a line, and what it
// needs of a machine, in table.cpp; and a line of kernels/gemm.cpp, for oneDNN.
//
// A Vec gives, for `lanes` floats F and twice as many 16-bit integers ("words") packed in I:
//   F zero, set(x) of a float or f16, load(p), store(p, v) of floats and f16
//   F load(p) of bf16 and of signed bytes
//   F codes<bits>(const uint8_t* p, i): the next `lanes` codes of 2 or 4 bits, as floats; the first
//     is code i of a row, i a multiple of lanes, and begins in the byte p
//   F levels<bits>(f16 scale), and F at_codes<bits>(F levels, const uint8_t* p, i): what
//     such codes stand for, (code - middle) * scale, where middle is half of the largest code
//   F look_up(const float* table, F scale, F offset, const uint8_t* p, i): of codes i to i + lanes,
//     i a multiple of lanes, of the 32 that are the low halves of 16 bytes and then their high
//     halves: table[code] * scale + offset, rounded once; scale and offset are alike in all lanes
//   F look_up(..., p, const uint8_t* fifth, i): the same of table[code] + 16 where bit i of `fifth`
//     is set
//   F add_bits(F sum, float value, const uint8_t* p, i, n): sum + value in the lanes whose bits are
//     set, of the n at p those from i on, the first lowest; i a multiple of lanes, n of 8. One byte
//     beyond them may be read
//   F add, sub, mul, div, fma(a, b, c) = a * b + c, max, min; float sum(v), float largest(v)
//   sums4(const F* v, out): the sums of four, each with the bits of sum(v)
//   F where_negative(x, a, b): a in the lanes where x's sign bit is set, b in the others
//   F load_tail(p, n), store_tail(p, v, n) for the first n < lanes floats
//   uint32_t reaching(x, bound): bit i where lane i of x is at least bound's
//   size_t keep(float* p, F v, mask): stores the lanes of the mask's bits, one after the other;
//     writes up to lanes floats. Returns how many those were
//   F keep_where_above(x, bound, v): v where x > bound, else 0
//   F exp2i(F n): 2^n for integral n in [-126, 127], 0 for -127; F round(v) to nearest even
//   F exponent(F x), significand(F x) of normal x > 0: x = significand * 2^exponent, 1 <=
//   significand
//     < 2
//   F butterfly<half>(F v): for each pair of lanes i, i + half (i / half even): their sum, and
//   their
//     difference
//   F exp_coarse(F x): e^x for x <= 60 within 1.1e-4 of it, exact for 0; 0 below -138
//   I izero(); I load_i16(const int16_t* p)
//   store_i16(int16_t* p, F v): lanes integral floats as words
//   I madd_to(I sums, I a, I b): adds 32-bit sums of neighbouring words' products;
//   I add32(I a, I b); I load_words(const int8_t* p): signed bytes as words
//   F to_float(I sums) of the 32-bit lanes
// and, where matvec.h is made of it,
//   set_two(const f16* p, F* a, F* b): all of a p[0], all of b p[1]
//   I iset(x): every word x; I add16, sub16, mul16 (the low half) of words
//   I madd(I a, I b): 32-bit sums of neighbouring words' products
// and 32 words at once, a group, in the 16 / lanes registers I* out: those of even numbers first,
// then those of odd ones, because that is how bytes fall apart without crossing lanes:
//   nibbles(const uint8_t* p, out): 16 bytes: word i is the low half of byte i or, from 16 on, the
//     high half of byte i - 16
//   pick(const uint8_t* p, shift, mask, out): 32 bytes: word i is (byte i >> shift) & mask; to the
//     left for a shift below 0. No other byte's bits may come under the mask
//   i8(const int8_t* p, out): 32 signed bytes
//   bits(const uint8_t* p, value, out): 4 bytes: word i is `value` where bit i is set, else 0
//   halves(const int8_t* p, out): p[0] for the first 16 words, p[1] for the others
//   floats(const I* words, F* out): word i as float i, in order
// and for codes of 1, 2 or 4 bits, four bytes a lane in B:
//   B load_bytes(const uint8_t* p); B quad(const int8_t* p): four bytes, in every lane
//   B crumbs<bits>(B v): the low bits of each byte; B next_crumbs<bits>(B v): so many bits down,
//   above them any
//   I dot4(I sums, B codes, B quad): adds each lane's four products of codes and quad's bytes -127
//   to 127; I dot4_total(I sums): the 32-bit lanes of such sums, from izero() on, as long as those
//   of two products a term stay below 2^15
// Sums over lanes are taken in a fixed order, so a kernel's bits depend on the Vec alone.
// clang-format on
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/base/half.h"

namespace thermocline {
namespace {  // each instruction set's file gets its own copy: nothing of it may be shared by name

// e^x for x <= 60 (attention weights): relative error below 2e-7; 0 below -87.7, where n is -127.
template <typename V>
inline typename V::F exp_bounded(typename V::F x) {
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

// ln x of x > 0, within 1.5e-7 of it or of 1; of less than the smallest normal number, its.
template <typename V>
inline typename V::F log_bounded(typename V::F x) {
  using F = typename V::F;
  const F normal = V::max(x, V::set(1.17549435e-38f));
  F n = V::exponent(normal), m = V::significand(normal);
  const F below = V::sub(m, V::set(1.41421356f));  // negative: m is
  n = V::where_negative(below, n, V::add(n, V::set(1.0f)));
  m = V::where_negative(below, m, V::mul(m, V::set(0.5f)));
  const F r = V::sub(m, V::set(1.0f)), z = V::mul(r, r);
  F p = V::set(7.0376836292e-2f);
  p = V::fma(p, r, V::set(-1.1514610310e-1f));
  p = V::fma(p, r, V::set(1.1676998740e-1f));
  p = V::fma(p, r, V::set(-1.2420140846e-1f));
  p = V::fma(p, r, V::set(1.4249322787e-1f));
  p = V::fma(p, r, V::set(-1.6668057665e-1f));
  p = V::fma(p, r, V::set(2.0000714765e-1f));
  p = V::fma(p, r, V::set(-2.4999993993e-1f));
  p = V::fma(p, r, V::set(3.3333331174e-1f));
  F y = V::mul(V::mul(p, r), z);
  y = V::fma(n, V::set(-2.12194440e-4f), y);
  y = V::fma(z, V::set(-0.5f), y);
  return V::fma(n, V::set(0.693359375f), V::add(r, y));
}

}  // namespace
}  // namespace thermocline
