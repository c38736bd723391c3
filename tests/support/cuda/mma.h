// Matrix products of a warp, on the host: lane 0 has the fragments and does the work, when all
// lanes have come. A matrix is aligned to 32 bytes, and what lies between its rows to 16, as the
// device asks for.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int m, int n, int k, typename T, typename Layout = void>
struct fragment {
  float value[256];  // [row][column] of the matrix, whichever way it lies in memory
};

template <typename T>
void check_matrix(const T* at, unsigned stride) {
  const bool aligned =
      reinterpret_cast<std::uintptr_t>(at) % 32 == 0 && stride * sizeof(T) % 16 == 0;
  if (!aligned) __trap();
  __syncwarp();
}

template <typename Use, typename T>
void fill_fragment(fragment<Use, 16, 16, 16, T>& a, float with) {
  std::fill(std::begin(a.value), std::end(a.value), with);
}

inline float value_of(__nv_bfloat16 x) { return thermocline::to_float(x); }
inline float value_of(__half x) { return __half2float(x); }

template <typename Use, typename T, typename Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& a, const T* at, unsigned stride) {
  check_matrix(at, stride);
  if (emulated::lane() != 0) return;
  for (unsigned i = 0; i < 16; ++i)
    for (unsigned j = 0; j < 16; ++j)
      a.value[16 * i + j] =
          value_of(std::is_same_v<Layout, row_major> ? at[i * stride + j] : at[j * stride + i]);
}

template <typename T, typename LayoutA, typename LayoutB>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& d,
              const fragment<matrix_a, 16, 16, 16, T, LayoutA>& a,
              const fragment<matrix_b, 16, 16, 16, T, LayoutB>& b,
              const fragment<accumulator, 16, 16, 16, float>& c) {
  __syncwarp();
  if (emulated::lane() != 0) return;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) {
      float sum = c.value[16 * i + j];
      for (int k = 0; k < 16; ++k) sum += a.value[16 * i + k] * b.value[16 * k + j];
      d.value[16 * i + j] = sum;
    }
}

inline void store_matrix_sync(float* at, const fragment<accumulator, 16, 16, 16, float>& a,
                              unsigned stride, layout_t layout) {
  check_matrix(at, stride);
  if (emulated::lane() != 0) return;
  for (unsigned i = 0; i < 16; ++i)
    for (unsigned j = 0; j < 16; ++j)
      at[layout == mem_row_major ? i * stride + j : j * stride + i] = a.value[16 * i + j];
}

}  // namespace nvcuda::wmma
