#include "kernels/cuda/dense.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"

namespace thermocline::cuda {
namespace {

constexpr unsigned kMostThreads = 256;  // of a block

// A matrix in device memory; its number of columns is told apart.
template <typename T>
struct Rows {
  T* data;
  std::size_t stride;
  explicit Rows(const MatView<T>& of) : data(of.data()), stride(of.stride()) {}
  __device__ T* row(unsigned r) const { return data + r * stride; }
};

// Block (row), of as many threads as are worth it: a head's row is short.
template <unsigned kThreads>
__global__ void __launch_bounds__(kThreads)
    norm_row(Rows<const float> x, const float* weight, unsigned cols, float epsilon,
             Rows<float> out) {
  const float* from = x.row(blockIdx.x);
  float squares = 0.0f;
  for (unsigned i = threadIdx.x; i < cols; i += kThreads) squares = fmaf(from[i], from[i], squares);
  squares = reduce<kThreads>(squares, [](float a, float b) { return a + b; });
  const float by = 1.0f / sqrtf(squares / static_cast<float>(cols) + epsilon);
  float* to = out.row(blockIdx.x);
  for (unsigned i = threadIdx.x; i < cols; i += kThreads) to[i] = from[i] * by * weight[i];
}

// Calls at(i) for column i of the block's row: block (row, as many columns as threads).
template <typename At>
__device__ void for_column(unsigned cols, const At& at) {
  const unsigned i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i < cols) at(i);
}

__global__ void __launch_bounds__(kMostThreads)
    add_row(Rows<const float> x, unsigned cols, Rows<float> into) {
  for_column(cols, [&](unsigned i) { into.row(blockIdx.x)[i] += x.row(blockIdx.x)[i]; });
}

// x / (1 + e^-u). The power is taken of -|u|, so nothing overflows and small results keep their
// relative accuracy.
__device__ float times_sigmoid(float x, float u) {
  const float power = expf(-fabsf(u));
  return x * (u < 0 ? power : 1.0f) / (1.0f + power);
}

// x / 2 * (1 + tanh(v)) = x / (1 + e^-2v), v = sqrt(2 / pi) * (x + 0.044715 x^3).
__device__ float active(Activation activation, float x) {
  constexpr float kLinear = 1.5957691216057308f;  // 2 * sqrt(2 / pi)
  constexpr float kCubic = kLinear * 0.044715f;
  return times_sigmoid(x, activation == Activation::silu ? x : x * fmaf(x * x, kCubic, kLinear));
}

__global__ void __launch_bounds__(kMostThreads)
    activate_row(Activation activation, Rows<const float> up, unsigned cols, Rows<float> gate) {
  for_column(cols, [&](unsigned i) {
    float& value = gate.row(blockIdx.x)[i];
    value = active(activation, value) * up.row(blockIdx.x)[i];
  });
}

// Queues a kernel that goes through rows of x by for_column().
template <typename... Parameters, typename... Arguments>
Status launch_columns(Stream& stream, const char* name, MatView<const float> x,
                      void (*kernel)(Parameters...), const Arguments&... arguments) {
  const auto cols = static_cast<unsigned>(x.cols());
  const unsigned threads = min(kMostThreads, (cols + kWarp - 1) / kWarp * kWarp);
  const dim3 grid(static_cast<unsigned>(x.rows()), (cols + threads - 1) / threads);
  return launch(stream, name, grid, dim3(threads), kernel, arguments...);
}

}  // namespace

Status rms_norm(Stream& stream, MatView<const float> x, const float* weight, float epsilon,
                MatView<float> out) {
  if (x.empty()) return {};
  const auto rows = static_cast<unsigned>(x.rows()), cols = static_cast<unsigned>(x.cols());
  const bool is_short = cols <= kMostThreads;
  return launch(stream, "norm", dim3(rows), dim3(is_short ? unsigned{kWarp} : kMostThreads),
                is_short ? norm_row<kWarp> : norm_row<kMostThreads>, Rows(x), weight, cols, epsilon,
                Rows(out));
}

Status add(Stream& stream, MatView<const float> x, MatView<float> into) {
  if (x.empty()) return {};
  return launch_columns(stream, "add", x, add_row, Rows(x), static_cast<unsigned>(x.cols()),
                        Rows(into));
}

Status activate(Stream& stream, Activation activation, MatView<const float> up,
                MatView<float> gate) {
  if (up.empty()) return {};
  return launch_columns(stream, "activate", up, activate_row, activation, Rows(up),
                        static_cast<unsigned>(up.cols()), Rows(gate));
}

}  // namespace thermocline::cuda
