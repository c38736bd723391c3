// AVX-512 (F, BW, DQ, VL) with VNNI: sixteen floats.
#pragma once

#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/vec.h"

namespace thermocline {
namespace {

struct VecAvx512 {
  static constexpr int lanes = 16;
  using F = __m512;
  using I = __m512i;
  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F set(f16 x) { return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(x.bits))); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F load(const f16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load(const bf16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static F load(const std::int8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  // Sixteen of them, by the last four bits of what looks them up: those of two bits four times.
  template <int kBits>
  static F levels(f16 scale) {
    const __m512i each = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    constexpr int kLast = (1 << kBits) - 1;
    const F code = _mm512_cvtepi32_ps(_mm512_and_si512(each, _mm512_set1_epi32(kLast)));
    return mul(sub(code, set(static_cast<float>(kLast) / 2)), set(scale));
  }
  // The next sixteen codes, each in the low bits of a lane.
  template <int kBits>
  static __m512i code_words(const std::uint8_t* p) {
    if constexpr (kBits == 2) {
      int all;
      __builtin_memcpy(&all, p, 4);
      const __m512i shift =
          _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
      return _mm512_srlv_epi32(_mm512_set1_epi32(all), shift);
    } else {
      const __m512i shift =
          _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
      const __m512i half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
      const __m512i both =
          _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
      const __m512i word = _mm512_permutexvar_epi32(half, both);
      return _mm512_srlv_epi32(word, shift);
    }
  }
  template <int kBits>
  static F codes(const std::uint8_t* p, std::uint32_t) {
    return _mm512_cvtepi32_ps(
        _mm512_and_si512(code_words<kBits>(p), _mm512_set1_epi32((1 << kBits) - 1)));
  }
  template <int kBits>
  static F at_codes(F levels, const std::uint8_t* p, std::uint32_t) {
    return _mm512_permutexvar_ps(code_words<kBits>(p), levels);
  }
  static F add_bits(F sum, float value, const std::uint8_t* p, std::uint32_t i, std::uint32_t n) {
    std::uint16_t set_bits;
    __builtin_memcpy(&set_bits, p + i / 8, sizeof set_bits);
    if (n - i < 16) set_bits &= 0xff;
    return _mm512_mask_add_ps(sum, set_bits, sum, set(value));
  }
  static __m512i nibble(const std::uint8_t* p, std::uint32_t i) {
    return _mm512_srli_epi32(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), i / 4);
  }
  static F look_up(const float* table, F scale, F offset, const std::uint8_t* p, std::uint32_t i) {
    return _mm512_permutexvar_ps(nibble(p, i), fma(load(table), scale, offset));
  }
  static F look_up(const float* table, F scale, F offset, const std::uint8_t* p,
                   const std::uint8_t* fifth, std::uint32_t i) {
    std::uint16_t upper;
    __builtin_memcpy(&upper, fifth + i / 8, sizeof upper);
    const F level = _mm512_permutexvar_ps(nibble(p, i), load(table));
    return fma(_mm512_mask_add_ps(level, upper, level, set(16.0f)), scale, offset);
  }
  static void store(f16* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static __mmask16 tail_mask(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static F load_tail(const float* p, int n) { return _mm512_maskz_loadu_ps(tail_mask(n), p); }
  static void store_tail(float* p, F v, int n) { _mm512_mask_storeu_ps(p, tail_mask(n), v); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static std::uint32_t reaching(F x, F bound) { return _mm512_cmp_ps_mask(x, bound, _CMP_GE_OQ); }
  static std::size_t keep(float* p, F v, std::uint32_t mask) {
    store(p, _mm512_maskz_compress_ps(static_cast<__mmask16>(mask), v));  // to memory it is slow
    return static_cast<std::size_t>(__builtin_popcount(mask & 0xffff));
  }
  static F keep_where_above(F x, float bound, F v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(bound), _CMP_GT_OQ), v);
  }
  static F where_negative(F x, F a, F b) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), b, a);
  }
  // Within each 128 bits first, so that four sums can be taken together with the same bits.
  static float sum(F v) {
    const F halves = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4e));
    return quarter_sums(_mm512_add_ps(halves, _mm512_permute_ps(halves, 0xb1)))[0];
  }
  static void sums4(const F* v, float* out) {
    const F ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    const F cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    const F abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    _mm_storeu_ps(out, quarter_sums(abcd));
  }
  static __m128 quarter_sums(F v) {
    const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
  }
  static float largest(F v) { return _mm512_reduce_max_ps(v); }
  static F round(F v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static F exp2i(F n) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
  }
  static F exponent(F x) { return _mm512_getexp_ps(x); }
  static F significand(F x) { return _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src); }
  template <int kHalf>
  static F butterfly(F v) {
    constexpr __mmask16 kSecond = kHalf == 1   ? 0xaaaa
                                  : kHalf == 2 ? 0xcccc
                                  : kHalf == 4 ? 0xf0f0
                                               : 0xff00;
    constexpr int kSwap = kHalf == 1 || kHalf == 4 ? 0xb1 : 0x4e;
    const F other = kHalf <= 2 ? _mm512_permute_ps(v, kSwap) : _mm512_shuffle_f32x4(v, v, kSwap);
    return _mm512_mask_sub_ps(_mm512_add_ps(other, v), kSecond, other, v);
  }
  static F exp_coarse(F x) {
    const F t = max(mul(x, set(1.44269504f)), set(-200.0f));
    const F n = round(t), f = sub(t, n);
    F p = fma(set(0.0550089255f), f, set(0.2422109544f));
    p = fma(p, f, set(0.6932829022f));
    p = fma(p, f, set(1.0f));
    return _mm512_scalef_ps(p, n);
  }
  static I izero() { return _mm512_setzero_si512(); }
  static I load_i16(const std::int16_t* p) {
    return _mm512_loadu_si512(reinterpret_cast<const void*>(p));
  }
  static I load_words(const std::int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static I madd_to(I sums, I a, I b) { return _mm512_dpwssd_epi32(sums, a, b); }
  static void store_i16(std::int16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v)));
  }
  static I add32(I a, I b) { return _mm512_add_epi32(a, b); }
  static F to_float(I sums) { return _mm512_cvtepi32_ps(sums); }
  using B = __m512i;
  static B load_bytes(const std::uint8_t* p) {
    return _mm512_loadu_si512(reinterpret_cast<const void*>(p));
  }
  static B quad(const std::int8_t* p) {
    int four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  template <int kBits>
  static B crumbs(B v) {
    return _mm512_and_si512(v, _mm512_set1_epi8((1 << kBits) - 1));
  }
  template <int kBits>
  static B next_crumbs(B v) {
    return _mm512_srli_epi16(v, kBits);
  }
  static I dot4(I sums, B codes, B quad) { return _mm512_dpbusd_epi32(sums, codes, quad); }
  static I dot4_total(I sums) { return sums; }
  static float to_float(f16 h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h.bits))); }
};

}  // namespace
}  // namespace thermocline
