#include "kernels/sketch.h"

#include <algorithm>
#include <cmath>

namespace thermocline {
namespace {

// Codes stand for -1.5, -0.5, 0.5 and 1.5 times the scale: the sign and one of two magnitudes.
inline float magnitude(float x, float scale) { return std::abs(x) > scale ? 1.5f : 0.5f; }

inline unsigned code_of(float x, float scale) {
  const unsigned large = std::abs(x) > scale;
  return x < 0.0f ? 1u - large : 2u + large;
}

// The least-squares scale for the codes that the scale before chose. Sixteen sums at once, for the
// compiler to put into registers; key_dim is a multiple of 16.
float fitted_scale(const float* x, std::size_t key_dim, float scale) {
  float along[16] = {}, length[16] = {};
  for (std::size_t i = 0; i < key_dim; i += 16)
    for (std::size_t j = 0; j < 16; ++j) {
      const float m = magnitude(x[i + j], scale);
      along[j] += std::abs(x[i + j]) * m;
      length[j] += m * m;
    }
  float a = 0.0f, l = 0.0f;
  for (int j = 0; j < 16; ++j) {
    a += along[j];
    l += length[j];
  }
  return a / l;
}

}  // namespace

void hadamard(float* x, std::size_t n) {
  if (n == 0) return;
  const std::size_t block = n & (~n + 1);
  for (float* at = x; at != x + n; at += block)
    for (std::size_t half = 1; half < block; half *= 2)
      for (std::size_t i = 0; i < block; i += 2 * half)
        for (std::size_t j = i; j < i + half; ++j) {
          const float a = at[j], b = at[j + half];
          at[j] = a + b;
          at[j + half] = a - b;
        }
  const float scale = 1.0f / std::sqrt(static_cast<float>(block));
  for (std::size_t i = 0; i < n; ++i) x[i] *= scale;
}

void encode_sketch(const float* x, std::size_t key_dim, std::size_t row, std::uint8_t* codes,
                   f16* scales) {
  constexpr int kRounds = 4;
  float squares = 0.0f;
  for (std::size_t i = 0; i < key_dim; ++i) squares += x[i] * x[i];
  // The best step for normally distributed values is their deviation, almost.
  float scale = std::sqrt(squares / static_cast<float>(key_dim));
  for (int round = 0; round < kRounds && scale > 0.0f; ++round)
    scale = fitted_scale(x, key_dim, scale);
  constexpr float kLargest = 65504.0f, kSmallest = 6.103515625e-5f;  // normal f16
  if (!(scale >= kSmallest)) scale = 0.0f;                           // NaN too
  scales[row] = to_f16(std::min(scale, kLargest));
  const float stored = to_float(scales[row]);
  std::uint8_t* group = codes + row / kSketchGroup * kSketchGroup * key_dim / 4;
  std::uint8_t* quads = group + 4 * (row % kSketchGroup);
  for (std::size_t word = 0; word < key_dim / 16; ++word)
    for (std::size_t j = 0; j < 4; ++j) {
      unsigned byte = 0;
      for (std::size_t s = 0; s < 4; ++s)
        byte |= code_of(x[16 * word + 4 * s + j], stored) << (2 * s);
      quads[word * 64 + j] = static_cast<std::uint8_t>(byte);
    }
}

SketchQuery prepare_query(const float* query, std::size_t key_dim, float* rotated,
                          std::int8_t* code) {
  std::copy_n(query, key_dim, rotated);
  hadamard(rotated, key_dim);
  float largest = 0.0f;
  for (std::size_t i = 0; i < key_dim; ++i) largest = std::max(largest, std::abs(rotated[i]));
  SketchQuery out{code, largest / 127.0f, 0};
  const float per_scale = largest > 0.0f && std::isfinite(largest) ? 127.0f / largest : 0.0f;
  for (std::size_t i = 0; i < key_dim; ++i) {
    const long q = std::lrint(per_scale * rotated[i]);
    code[i] = static_cast<std::int8_t>(std::clamp(q, -127L, 127L));
    out.sum += code[i];
  }
  return out;
}

}  // namespace thermocline
