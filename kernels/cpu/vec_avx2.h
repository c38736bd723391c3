// AVX2 with FMA and F16C: eight floats.
#pragma once

#include <cstring>

#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/vec.h"

namespace thermocline {
namespace {

struct VecAvx2 {
  static constexpr int lanes = 8;
  using F = __m256;
  using I = __m256i;
  static F zero() { return _mm256_setzero_ps(); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F set(f16 x) { return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(x.bits))); }
  static void set_two(const f16* p, F* a, F* b) {
    const __m128 both = _mm_broadcast_ss(reinterpret_cast<const float*>(p));  // no shuffle's time
    const F by_turns = _mm256_cvtph_ps(_mm_castps_si128(both));
    *a = _mm256_moveldup_ps(by_turns);
    *b = _mm256_movehdup_ps(by_turns);
  }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F load(const f16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static F load(const bf16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static F load(const std::int8_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  // Of two bits eight, each twice, by the last three bits of what looks them up; of four bits the
  // scale alone.
  template <int kBits>
  static F levels(f16 scale) {
    if constexpr (kBits == 4) return set(scale);
    return mul(_mm256_setr_ps(-1.5f, -0.5f, 0.5f, 1.5f, -1.5f, -0.5f, 0.5f, 1.5f), set(scale));
  }
  // The next eight codes, each in the low bits of a lane.
  template <int kBits>
  static __m256i code_words(const std::uint8_t* p) {
    int all = 0;
    std::memcpy(&all, p, kBits);  // eight codes are as many bytes as one has bits
    const __m256i each = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_srlv_epi32(_mm256_set1_epi32(all), _mm256_slli_epi32(each, kBits / 2));
  }
  template <int kBits>
  static F codes(const std::uint8_t* p, std::uint32_t) {
    return _mm256_cvtepi32_ps(
        _mm256_and_si256(code_words<kBits>(p), _mm256_set1_epi32((1 << kBits) - 1)));
  }
  template <int kBits>
  static F at_codes(F levels, const std::uint8_t* p, std::uint32_t i) {
    if constexpr (kBits == 2) return _mm256_permutevar8x32_ps(levels, code_words<2>(p));
    return mul(sub(codes<4>(p, i), set(7.5f)), levels);
  }
  static F look_up(const float* table, F scale, F offset, const std::uint8_t* p, std::uint32_t i) {
    return fma(level(table, p, i), scale, offset);
  }
  static F look_up(const float* table, F scale, F offset, const std::uint8_t* p,
                   const std::uint8_t* fifth, std::uint32_t i) {
    return fma(add_bits(level(table, p, i), 16.0f, fifth, i, i + 8), scale, offset);
  }
  static F add_bits(F sum, float value, const std::uint8_t* p, std::uint32_t i, std::uint32_t) {
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i is_set =
        _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(p[i / 8]), each), each);
    return add(sum, _mm256_and_ps(_mm256_castsi256_ps(is_set), set(value)));
  }
  static F level(const float* table, const std::uint8_t* p, std::uint32_t i) {
    const __m256i bytes =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + i % 16)));
    const __m256i code = _mm256_srli_epi32(bytes, static_cast<int>(i / 16 * 4));
    const F upper = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));  // the sign: the fourth bit
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(load(table), code),
                            _mm256_permutevar8x32_ps(load(table + 8), code), upper);
  }
  static void store(f16* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static __m256i tail_mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static F load_tail(const float* p, int n) { return _mm256_maskload_ps(p, tail_mask(n)); }
  static void store_tail(float* p, F v, int n) { _mm256_maskstore_ps(p, tail_mask(n), v); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static std::uint32_t reaching(F x, F bound) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, bound, _CMP_GE_OQ)));
  }
  static std::size_t keep(float* p, F v, std::uint32_t mask) {
    alignas(32) float lane[lanes];
    store(lane, v);
    std::size_t kept = 0;
    for (; mask != 0; mask &= mask - 1) p[kept++] = lane[__builtin_ctz(mask)];
    return kept;
  }
  static F keep_where_above(F x, float bound, F v) {
    return _mm256_and_ps(_mm256_cmp_ps(x, _mm256_set1_ps(bound), _CMP_GT_OQ), v);
  }
  static F where_negative(F x, F a, F b) { return _mm256_blendv_ps(b, a, x); }
  static float sum(F v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static void sums4(const F* v, float* out) {
    for (int i = 0; i < 4; ++i) out[i] = sum(v[i]);
  }
  static float largest(F v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }
  static F round(F v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F exp2i(F n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }
  static F exponent(F x) {
    const __m256i biased = _mm256_srli_epi32(_mm256_castps_si256(x), 23);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(biased, _mm256_set1_epi32(127)));
  }
  static F significand(F x) {
    const __m256i fraction = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffff));
    return _mm256_castsi256_ps(_mm256_or_si256(fraction, _mm256_set1_epi32(0x3f800000)));
  }
  template <int kHalf>
  static F butterfly(F v) {
    constexpr int kSecond = kHalf == 1 ? 0xaa : kHalf == 2 ? 0xcc : 0xf0;
    const F other = kHalf == 4 ? _mm256_permute2f128_ps(v, v, 1)
                               : _mm256_permute_ps(v, kHalf == 1 ? 0xb1 : 0x4e);
    return _mm256_blend_ps(add(other, v), sub(other, v), kSecond);
  }
  static F exp_coarse(F x) { return exp_bounded<VecAvx2>(x); }
  static I izero() { return _mm256_setzero_si256(); }
  static I iset(int x) { return _mm256_set1_epi16(static_cast<short>(x)); }
  static I load_i16(const std::int16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static I load_words(const std::int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I madd_to(I sums, I a, I b) { return add32(sums, madd(a, b)); }
  static void store_i16(std::int16_t* p, F v) {
    const __m256i wide = _mm256_cvtps_epi32(v);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(p),
        _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
  }
  static I add16(I a, I b) { return _mm256_add_epi16(a, b); }
  static I sub16(I a, I b) { return _mm256_sub_epi16(a, b); }
  static I mul16(I a, I b) { return _mm256_mullo_epi16(a, b); }
  static void nibbles(const std::uint8_t* p, I* out) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const I halves = _mm256_srlv_epi32(_mm256_broadcastsi128_si256(bytes),
                                       _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
    out[0] = _mm256_and_si256(halves, iset(15));
    out[1] = _mm256_and_si256(_mm256_srli_epi16(halves, 8), iset(15));
  }
  static void pick(const std::uint8_t* p, int shift, int mask, I* out) {
    const I bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const I even = shift < 0 ? _mm256_slli_epi16(bytes, -shift) : _mm256_srli_epi16(bytes, shift);
    out[0] = _mm256_and_si256(even, iset(mask));
    out[1] = _mm256_and_si256(_mm256_srli_epi16(bytes, 8 + shift), iset(mask));
  }
  static void i8(const std::int8_t* p, I* out) {
    const I bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    out[0] = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
    out[1] = _mm256_srai_epi16(bytes, 8);
  }
  static void bits(const std::uint8_t* p, int value, I* out) {
    int all;
    std::memcpy(&all, p, sizeof all);
    const I low = _mm256_set1_epi16(0x0100), high = _mm256_set1_epi16(0x0302);
    const I here = _mm256_shuffle_epi8(_mm256_set1_epi32(all),
                                       _mm256_blend_epi32(low, high, 0xf0));  // 16 bits a half
    const I even = _mm256_set1_epi64x(0x0040001000040001), odd = _mm256_slli_epi16(even, 1);
    const I evens = _mm256_blend_epi32(even, _mm256_slli_epi16(even, 8), 0xcc);
    const I odds = _mm256_blend_epi32(odd, _mm256_slli_epi16(odd, 8), 0xcc);
    out[0] =
        _mm256_and_si256(_mm256_cmpeq_epi16(_mm256_and_si256(here, evens), evens), iset(value));
    out[1] = _mm256_and_si256(_mm256_cmpeq_epi16(_mm256_and_si256(here, odds), odds), iset(value));
  }
  static void halves(const std::int8_t* p, I* out) {
    short both;
    std::memcpy(&both, p, sizeof both);
    const I topmost =
        _mm256_sllv_epi32(_mm256_set1_epi16(both), _mm256_setr_epi32(8, 8, 8, 8, 0, 0, 0, 0));
    out[0] = out[1] = _mm256_srai_epi16(topmost, 8);
  }
  static void floats(const I* words, F* out) {
    const I low = _mm256_unpacklo_epi16(words[0], words[1]);  // 0 to 7, 16 to 23
    const I high = _mm256_unpackhi_epi16(words[0], words[1]);
    out[0] = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(low)));
    out[1] = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(high)));
    out[2] = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(low, 1)));
    out[3] = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(high, 1)));
  }
  static I madd(I a, I b) { return _mm256_madd_epi16(a, b); }
  static I add32(I a, I b) { return _mm256_add_epi32(a, b); }
  static F to_float(I sums) { return _mm256_cvtepi32_ps(sums); }
  using B = __m256i;
  static B load_bytes(const std::uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static B quad(const std::int8_t* p) {
    int four;
    __builtin_memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
  }
  template <int kBits>
  static B crumbs(B v) {
    return _mm256_and_si256(v, _mm256_set1_epi8((1 << kBits) - 1));
  }
  template <int kBits>
  static B next_crumbs(B v) {
    return _mm256_srli_epi16(v, kBits);
  }
  // 16-bit sums: a lane's half gains two products a term.
  static I dot4(I sums, B codes, B quad) {
    return _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, quad));
  }
  static I dot4_total(I sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }
  static float to_float(f16 h) { return _cvtsh_ss(h.bits); }
};

}  // namespace
}  // namespace thermocline
