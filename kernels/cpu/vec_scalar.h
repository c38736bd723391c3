// The plain Vec: one lane, any machine. It is what the others are compared with in bits of meaning.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/cpu/vec.h"

namespace thermocline {
namespace {

struct VecScalar {
  static constexpr int lanes = 1;
  static constexpr const char* name = "scalar";
  using F = float;
  struct I {
    std::int32_t a, b;  // two 16-bit integers, or one 32-bit sum in `a`
  };
  static F zero() { return 0.0f; }
  static F set(float x) { return x; }
  static F load(const float* p) { return *p; }
  static void store(float* p, F v) { *p = v; }
  static F load(const f16* p) { return to_float(*p); }
  static F load(const bf16* p) { return thermocline::to_float(*p); }
  static void store(f16* p, F v) { *p = to_f16(v); }
  static F load_tail(const float*, int) { return 0.0f; }
  static void store_tail(float*, F, int) {}
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F fma(F a, F b, F c) { return std::fma(a, b, c); }
  static F max(F a, F b) { return a > b ? a : b; }
  static F keep_where_above(F x, float bound, F v) { return x > bound ? v : 0.0f; }
  static float sum(F v) { return v; }
  static float largest(F v) { return v; }
  static F round(F v) { return std::nearbyintf(v); }
  static F exp2i(F n) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(static_cast<int>(n) + 127) << 23);
  }
  static I izero() { return {0, 0}; }
  static I widen_u8(const std::uint8_t* p) { return {p[0], p[1]}; }
  static I widen_i8(const std::int8_t* p) { return {p[0], p[1]}; }
  static I load_i16(const std::int16_t* p) { return {p[0], p[1]}; }
  static I madd(I x, I y) { return {x.a * y.a + x.b * y.b, 0}; }
  static I add32(I x, I y) { return {x.a + y.a, 0}; }
  static F to_float(I sums) { return static_cast<float>(sums.a); }
  static float to_float(f16 h) { return thermocline::to_float(h); }
};

}  // namespace
}  // namespace thermocline
