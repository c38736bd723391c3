#include "kernels/cuda/product.h"

#include <cuda_bf16.h>
#include <mma.h>

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"
#include "kernels/format/visit.h"
#include "kernels/matvec.h"

namespace thermocline::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarps = kThreads / kWarp;
constexpr unsigned kPart = 8;  // neighbouring weights that a lane reads

// Rows in device memory.
struct Weights {
  const std::byte* data;
  std::size_t row_bytes;
  unsigned rows, cols;
  __device__ const std::byte* row(unsigned r) const { return data + r * row_bytes; }
};
template <typename T>
struct Floats {
  T* data;
  unsigned stride, rows;  // no padding, by which a launch would differ from itself
  __device__ T* row(unsigned r) const { return data + std::size_t(r) * stride; }
};

// Weights [kPart * part, kPart * (part + 1)) of a row, as their format defines them.
template <typename Format>
__device__ void read_part(const std::byte* row, unsigned part, float* out) {
  if constexpr (requires { typename Format::Block; }) {
    constexpr unsigned kParts = 32 * Format::kGroups / kPart;
    const auto& block = reinterpret_cast<const typename Format::Block*>(row)[part / kParts];
#pragma unroll
    for (unsigned i = 0; i < kPart; ++i)
      out[i] = Format::value(block, static_cast<int>(part % kParts * kPart + i));
  } else {
    const auto* value = reinterpret_cast<const typename Format::Value*>(row) + part * kPart;
#pragma unroll
    for (unsigned i = 0; i < kPart; ++i) out[i] = Format::value(value[i]);
  }
}

__device__ void read_part(const float* row, unsigned part, float* out) {
  const float4* quads = reinterpret_cast<const float4*>(row + part * kPart);
#pragma unroll
  for (unsigned q = 0; q < kPart / 4; ++q) {
    const float4 quad = quads[q];
    out[4 * q] = quad.x;
    out[4 * q + 1] = quad.y;
    out[4 * q + 2] = quad.z;
    out[4 * q + 3] = quad.w;
  }
}

// A warp a row of weights; block row y has kRows rows of x, all of which meet a part of the weights
// while it is in registers.
template <typename Format, unsigned kRows>
__global__ void __launch_bounds__(kThreads)
    multiply_few(Weights w, Floats<const float> x, Floats<float> out) {
  const unsigned r = blockIdx.x * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (r >= w.rows) return;  // a whole warp
  const unsigned first = blockIdx.y * kRows, count = min(x.rows - first, kRows);
  float sum[kRows] = {};
  for (unsigned part = lane; part < w.cols / kPart; part += kWarp) {
    float weight[kPart], value[kPart];
    read_part<Format>(w.row(r), part, weight);
#pragma unroll
    for (unsigned t = 0; t < kRows; ++t) {
      if (t >= count) break;
      read_part(x.row(first + t), part, value);
#pragma unroll
      for (unsigned i = 0; i < kPart; ++i) sum[t] = fmaf(weight[i], value[i], sum[t]);
    }
  }
#pragma unroll
  for (unsigned t = 0; t < kRows; ++t) {
    for (int step = kWarp / 2; step > 0; step /= 2)
      sum[t] += __shfl_xor_sync(kWholeWarp, sum[t], step);
    if (lane == 0 && t < count) out.row(first + t)[r] = sum[t];
  }
}

namespace wmma = nvcuda::wmma;

constexpr unsigned kSide = 16;          // of a matrix that tensor cores multiply
constexpr unsigned kTileX = 128;        // rows of x that a thread block multiplies, a side a warp,
constexpr unsigned kTileW = 4 * kSide;  // with so many rows of weights,
constexpr unsigned kStep = 32;          // so many columns at a time
constexpr unsigned kApart = kStep + 8;  // values between a tile's rows, lest their banks meet
constexpr unsigned kParts = kStep / kPart;
static_assert(kTileX == kSide * kWarps && kTileW * kParts == kThreads);

__device__ void write_part(const float* part, __nv_bfloat16* to) {
#pragma unroll
  for (unsigned i = 0; i < kPart; ++i) to[i] = __float2bfloat16_rn(part[i]);
}

// Block (tile of weights, tile of x). What lies beyond either's rows is multiplied as zeros.
template <typename Format>
__global__ void __launch_bounds__(kThreads)
    multiply_many(Weights w, Floats<const float> x, Floats<float> out) {
  alignas(32) __shared__ __nv_bfloat16 tile_w[kTileW][kApart];
  alignas(32) __shared__ __nv_bfloat16 tile_x[kTileX][kApart];
  alignas(32) __shared__ float result[kWarps][kSide][kSide];
  const unsigned first_w = blockIdx.x * kTileW, first_x = blockIdx.y * kTileX;
  const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const unsigned row = threadIdx.x / kParts, part = threadIdx.x % kParts;  // that it reads

  wmma::fragment<wmma::accumulator, kSide, kSide, kSide, float> sum[kTileW / kSide];
  for (auto& of : sum) wmma::fill_fragment(of, 0.0f);
  for (unsigned col = 0; col < w.cols; col += kStep) {
    const unsigned at = col / kPart + part;
    float values[kPart] = {};
    if (first_w + row < w.rows) read_part<Format>(w.row(first_w + row), at, values);
    write_part(values, tile_w[row] + part * kPart);
    for (unsigned r = row; r < kTileX; r += kThreads / kParts) {
      float of_x[kPart] = {};
      if (first_x + r < x.rows) read_part(x.row(first_x + r), at, of_x);
      write_part(of_x, tile_x[r] + part * kPart);
    }
    __syncthreads();
    for (unsigned k = 0; k < kStep; k += kSide) {
      wmma::fragment<wmma::matrix_a, kSide, kSide, kSide, __nv_bfloat16, wmma::row_major> a;
      wmma::load_matrix_sync(a, tile_x[warp * kSide] + k, kApart);
      for (unsigned n = 0; n < kTileW / kSide; ++n) {
        wmma::fragment<wmma::matrix_b, kSide, kSide, kSide, __nv_bfloat16, wmma::col_major> b;
        wmma::load_matrix_sync(b, tile_w[n * kSide] + k, kApart);
        wmma::mma_sync(sum[n], a, b, sum[n]);
      }
    }
    __syncthreads();  // the tiles may be written again
  }
  for (unsigned n = 0; n < kTileW / kSide; ++n) {
    wmma::store_matrix_sync(result[warp][0], sum[n], kSide, wmma::mem_row_major);
    __syncwarp();
    for (unsigned i = lane; i < kSide * kSide; i += kWarp) {
      const unsigned t = first_x + warp * kSide + i / kSide, r = first_w + n * kSide + i % kSide;
      if (t < x.rows && r < w.rows) out.row(t)[r] = result[warp][i / kSide][i % kSide];
    }
    __syncwarp();
  }
}

template <typename Format, unsigned kRows>
Status queue_few(Stream& stream, Weights w, Floats<const float> x, Floats<float> out) {
  const dim3 grid((w.rows + kWarps - 1) / kWarps, (x.rows + kRows - 1) / kRows);
  return launch(stream, "multiply few rows", grid, dim3(kThreads), multiply_few<Format, kRows>, w,
                x, out);
}

template <typename Format>
Status queue(Stream& stream, Weights w, Floats<const float> x, Floats<float> out) {
  if (x.rows == 1) return queue_few<Format, 1>(stream, w, x, out);
  if (x.rows <= 4) return queue_few<Format, 4>(stream, w, x, out);
  if (x.rows <= kFewRows) return queue_few<Format, kFewRows>(stream, w, x, out);
  const dim3 grid((w.rows + kTileW - 1) / kTileW, (x.rows + kTileX - 1) / kTileX);
  return launch(stream, "multiply many rows", grid, dim3(kThreads), multiply_many<Format>, w, x,
                out);
}

}  // namespace

Status multiply(Stream& stream, WeightView w, MatView<const float> x, MatView<float> out) {
  TL_CHECK(x.cols() == w.cols && w.cols % kStep == 0);
  TL_CHECK(out.rows() == x.rows() && out.cols() == w.rows);
  if (w.rows == 0 || x.rows() == 0) return {};
  const Weights weights = {w.data, w.row_bytes(), static_cast<unsigned>(w.rows),
                           static_cast<unsigned>(w.cols)};
  const Floats<const float> from = {x.data(), static_cast<unsigned>(x.stride()),
                                    static_cast<unsigned>(x.rows())};
  const Floats<float> to = {out.data(), static_cast<unsigned>(out.stride()), from.rows};
  Status queued;
  visit_format(w.type,
               [&](auto format) { queued = queue<decltype(format)>(stream, weights, from, to); });
  return queued;
}

}  // namespace thermocline::cuda
