// The plain Vec: one lane, any machine. It is what the others are compared with in bits of meaning.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cpu/vec.h"

namespace thermocline {
namespace {

struct VecScalar {
  static constexpr int lanes = 1;
  using F = float;
  struct I {
    std::int64_t a, b;  // two words, or in `a` a sum: all 32 products of a group may meet in it
  };
  static F zero() { return 0.0f; }
  static F set(float x) { return x; }
  static F set(f16 x) { return to_float(x); }
  static void set_two(const f16* p, F* a, F* b) { *a = to_float(p[0]), *b = to_float(p[1]); }
  static F load(const float* p) { return *p; }
  static void store(float* p, F v) { *p = v; }
  static F load(const f16* p) { return to_float(*p); }
  static F load(const bf16* p) { return thermocline::to_float(*p); }
  static F load(const std::int8_t* p) { return static_cast<float>(*p); }
  template <int kBits>
  static F codes(const std::uint8_t* p, std::uint32_t i) {
    return static_cast<float>(*p >> i * kBits % 8 & ((1 << kBits) - 1));
  }
  template <int kBits>
  static F levels(f16 scale) {
    return to_float(scale);
  }
  template <int kBits>
  static F at_codes(F levels, const std::uint8_t* p, std::uint32_t i) {
    return (codes<kBits>(p, i) - static_cast<float>((1 << kBits) - 1) / 2) * levels;
  }
  static int nibble(const std::uint8_t* p, std::uint32_t i) {
    return i < 16 ? p[i] & 15 : p[i - 16] >> 4;
  }
  static F look_up(const float* table, F scale, F offset, const std::uint8_t* p, std::uint32_t i) {
    return fma(table[nibble(p, i)], scale, offset);
  }
  static F look_up(const float* table, F scale, F offset, const std::uint8_t* p,
                   const std::uint8_t* fifth, std::uint32_t i) {
    const float more = fifth[i / 8] >> i % 8 & 1 ? 16.0f : 0.0f;
    return fma(table[nibble(p, i)] + more, scale, offset);
  }
  static F add_bits(F sum, float value, const std::uint8_t* p, std::uint32_t i, std::uint32_t) {
    return p[i / 8] >> i % 8 & 1 ? sum + value : sum;
  }
  static void store(f16* p, F v) { *p = to_f16(v); }
  static F load_tail(const float*, int) { return 0.0f; }
  static void store_tail(float*, F, int) {}
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) { return std::fma(a, b, c); }
  static F max(F a, F b) { return a > b ? a : b; }
  static F min(F a, F b) { return a < b ? a : b; }
  static std::uint32_t reaching(F x, F bound) { return x >= bound; }
  static std::size_t keep(float* p, F v, std::uint32_t mask) {
    if (mask & 1) *p = v;
    return mask & 1;
  }
  static F keep_where_above(F x, float bound, F v) { return x > bound ? v : 0.0f; }
  static F where_negative(F x, F a, F b) { return std::signbit(x) ? a : b; }
  static float sum(F v) { return v; }
  static void sums4(const F* v, float* out) {
    for (int i = 0; i < 4; ++i) out[i] = sum(v[i]);
  }
  static float largest(F v) { return v; }
  static F round(F v) { return std::nearbyintf(v); }
  static F exp2i(F n) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(static_cast<int>(n) + 127) << 23);
  }
  static F exponent(F x) {
    return static_cast<float>(static_cast<int>(std::bit_cast<std::uint32_t>(x) >> 23) - 127);
  }
  static F significand(F x) {
    return std::bit_cast<float>((std::bit_cast<std::uint32_t>(x) & 0x7fffff) | 0x3f800000);
  }
  static F exp_coarse(F x) { return exp_bounded<VecScalar>(x); }
  static I izero() { return {0, 0}; }
  static I iset(int x) { return {x, x}; }
  static I load_i16(const std::int16_t* p) { return {p[0], p[1]}; }
  static I load_words(const std::int8_t* p) { return {p[0], p[1]}; }
  static I madd_to(I sums, I a, I b) { return add32(sums, madd(a, b)); }
  static void store_i16(std::int16_t* p, F v) { *p = static_cast<std::int16_t>(v); }
  static I add16(I x, I y) { return {x.a + y.a, x.b + y.b}; }
  static I sub16(I x, I y) { return {x.a - y.a, x.b - y.b}; }
  static I mul16(I x, I y) { return {x.a * y.a, x.b * y.b}; }
  template <typename Word>
  static void group(const Word& word, I* out) {
    for (int i = 0; i < 8; ++i) {
      out[i] = {word(4 * i), word(4 * i + 2)};
      out[8 + i] = {word(4 * i + 1), word(4 * i + 3)};
    }
  }
  static void nibbles(const std::uint8_t* p, I* out) {
    group([&](int i) { return i < 16 ? p[i] & 15 : p[i - 16] >> 4; }, out);
  }
  static void pick(const std::uint8_t* p, int shift, int mask, I* out) {
    group([&](int i) { return (shift < 0 ? p[i] << -shift : p[i] >> shift) & mask; }, out);
  }
  static void i8(const std::int8_t* p, I* out) {
    group([&](int i) { return p[i]; }, out);
  }
  static void bits(const std::uint8_t* p, int value, I* out) {
    group([&](int i) { return (p[i / 8] >> i % 8 & 1) * value; }, out);
  }
  static void halves(const std::int8_t* p, I* out) {
    group([&](int i) { return p[i / 16]; }, out);
  }
  static void floats(const I* words, F* out) {
    for (int i = 0; i < 8; ++i) {
      out[4 * i] = static_cast<float>(words[i].a);
      out[4 * i + 1] = static_cast<float>(words[8 + i].a);
      out[4 * i + 2] = static_cast<float>(words[i].b);
      out[4 * i + 3] = static_cast<float>(words[8 + i].b);
    }
  }
  static I madd(I x, I y) { return {x.a * y.a + x.b * y.b, 0}; }
  static I add32(I x, I y) { return {x.a + y.a, 0}; }
  static F to_float(I sums) { return static_cast<float>(sums.a); }
  struct B {
    std::int32_t b[4];
  };
  static B load_bytes(const std::uint8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static B quad(const std::int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
  template <int kBits>
  static B crumbs(B v) {
    for (std::int32_t& byte : v.b) byte &= (1 << kBits) - 1;
    return v;
  }
  template <int kBits>
  static B next_crumbs(B v) {
    for (std::int32_t& byte : v.b) byte >>= kBits;
    return v;
  }
  static I dot4(I sums, B codes, B quad) {
    for (int j = 0; j < 4; ++j) sums.a += codes.b[j] * quad.b[j];
    return sums;
  }
  static I dot4_total(I sums) { return sums; }
  static float to_float(f16 h) { return thermocline::to_float(h); }
};

}  // namespace
}  // namespace thermocline
