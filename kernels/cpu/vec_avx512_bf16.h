// AVX-512 with BF16: pairs of 16-bit floats, multiplied and added to a float in one instruction.
#pragma once

#include <cstring>

#include "kernels/cpu/vec_avx512.h"

namespace thermocline {
namespace {

struct VecAvx512Bf16 : VecAvx512 {
  using P = __m512bh;
  using VecAvx512::store;
  // Registers are cast, not copied through memory: the compiler would leave the copies there.
  static void store(bf16* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
  }
  static P load_pairs(const bf16* p) { return reinterpret_cast<P>(_mm512_loadu_si512(p)); }
  static P same_pair(const bf16* p) {
    int pair;
    std::memcpy(&pair, p, sizeof pair);
    return reinterpret_cast<P>(_mm512_set1_epi32(pair));
  }
  static void store_pairs(bf16* p, F first, F second) {
    const __m512i by_turns =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512bh halves = _mm512_cvtne2ps_pbh(second, first);  // all of first, then of second
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(by_turns, reinterpret_cast<__m512i>(halves)));
  }
  static F add_pairs(P a, P b, F sum) { return _mm512_dpbf16_ps(sum, a, b); }
};

}  // namespace
}  // namespace thermocline
