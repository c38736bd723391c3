#include "kernels/sketch.h"

#include <algorithm>
#include <cmath>

#include "kernels/hadamard.h"

namespace thermocline {

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
