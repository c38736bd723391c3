#include "kernels/hadamard.h"

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

}  // namespace thermocline
