// The kernels' oracle: the same operations as plain loops that accumulate in double. Slow, and
// written to be believed; the tests compare every fast version with these.
#pragma once

#include <cstddef>

#include "kernels/base/view.h"
#include "kernels/dense.h"
#include "kernels/format/weight.h"

namespace thermocline::reference {

// Row r of w by the definition of its format, value by value. out holds w.cols.
void dequantize(WeightView w, std::size_t r, float* out);

// out[t][r] = dot(w row r, x row t): as MatvecOps::multiply and gemm, for all rows of w.
void multiply(WeightView w, MatView<const float> x, MatView<double> out);

void rms_norm(const float* x, const float* weight, std::size_t n, float epsilon, double* out);
// [a, b] rotated by the angle whose cosine and sine are given, for each pair of the layout.
void rope(const float* cosine, const float* sine, std::size_t pairs, RopePairs layout,
          const float* x, double* out);
void silu_mul(const float* gate, const float* up, std::size_t n, double* out);
void gelu_mul(const float* gate, const float* up, std::size_t n, double* out);

}  // namespace thermocline::reference
