// The small dense operations of a layer on the device (kernels/dense.h on the host). All only queue
// work; matrices are in memory that the device reaches, and stay until the stream has got there.
// The bits of a row depend on it alone.
#pragma once

#include "kernels/base/activation.h"
#include "kernels/base/view.h"
#include "kernels/cuda/stream.h"

namespace thermocline::cuda {

// Of each row: out = x / sqrt(mean(x^2) + epsilon) * weight [cols]; out may be x.
Status rms_norm(Stream& stream, MatView<const float> x, const float* weight, float epsilon,
                MatView<float> out);

// into += x. A stride of 0 adds one row to all.
Status add(Stream& stream, MatView<const float> x, MatView<float> into);

// gate = activation(gate) * up
Status activate(Stream& stream, Activation activation, MatView<const float> up,
                MatView<float> gate);

}  // namespace thermocline::cuda
