#include "kernels/sketch.h"

#include <algorithm>
#include <cmath>

namespace thermocline {

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
