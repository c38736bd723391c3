// Coded weights times rows of floats on the device: what kernels/matvec.h and kernels/gemm.h are on
// the host.
#pragma once

#include "kernels/base/view.h"
#include "kernels/cuda/stream.h"
#include "kernels/format/weight.h"

namespace thermocline::cuda {

// out[t][r] = dot(w row r, x row t); x has w.cols columns, a multiple of 32, out is
// [x.rows()][w.rows]. Only queues work; all three are in memory that the device reaches, weights
// aligned to 256 bytes, rows of x to 16, and stay until the stream has got there.
//
// Of up to kFewRows rows of x all is float arithmetic. Of more, weights and x are rounded to bf16
// and sums are floats. The bits of a result depend on its two rows, and on which of the two it is.
Status multiply(Stream& stream, WeightView w, MatView<const float> x, MatView<float> out);

}  // namespace thermocline::cuda
