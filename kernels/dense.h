// The small dense operations of a layer, on rows of floats that someone else owns.
#pragma once

#include <cstddef>

#include "kernels/base/rope_pairs.h"

namespace thermocline {

struct DenseOps {
  // out = x / sqrt(mean(x^2) + epsilon) * weight; out may be x.
  void (*rms_norm)(const float* x, const float* weight, std::size_t n, float epsilon, float* out);
  // Rotates the first 2 * pairs values of x in place by the given angles.
  void (*rope)(const float* cosine, const float* sine, std::size_t pairs, RopePairs layout,
               float* x);
  void (*add)(const float* x, std::size_t n, float* into);  // into += x
  void (*scale)(float by, std::size_t n, float* x);         // x *= by
  void (*silu_mul)(const float* gate, const float* up, std::size_t n, float* out);
  void (*gelu_mul)(const float* gate, const float* up, std::size_t n, float* out);  // tanh form
  // Rounds to f16, to nearest even.
  void (*to_half)(const float* x, std::size_t n, void* out);
  // Rounds to bf16, to nearest even.
  void (*to_bfloat)(const float* x, std::size_t n, void* out);
  // f16 as floats, exactly.
  void (*from_half)(const void* x, std::size_t n, float* out);
  // kernels/hadamard.h, to the bit.
  void (*hadamard)(float* x, std::size_t n);
};

}  // namespace thermocline
