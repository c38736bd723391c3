// Matrix products of a warp, on the host: lane 0 has the fragments and does the work, as soon as it
// is there, so that a lane whose part of a matrix is not awaited shows; that all lanes come to as
// many products shows at their next barrier. A matrix is aligned to 32 bytes, and what lies between
// its rows to 16, as the device asks for.
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
  struct Elements {
    operator int() const { return emulated::lane() == 0 ? 256 : 0; }
  };
  static constexpr Elements num_elements = {};  // that this lane has
  float x[256];  // [row][column] of the matrix, whichever way it lies in memory
};

inline float value_of(__nv_bfloat16 x) { return thermocline::to_float(x); }
inline float value_of(__half x) { return __half2float(x); }
inline float value_of(float x) { return x; }

// Whether this lane has the work of its warp to do.
template <typename T>
bool works(const T* at, unsigned stride) {
  const bool aligned =
      reinterpret_cast<std::uintptr_t>(at) % 32 == 0 && stride * sizeof(T) % 16 == 0;
  if (!aligned) __trap();
  emulated::count_product();
  return emulated::lane() == 0;
}

template <typename T>
void load(const T* at, unsigned stride, bool rows, float* x) {
  if (!works(at, stride)) return;
  for (unsigned i = 0; i < 16; ++i)
    for (unsigned j = 0; j < 16; ++j)
      x[16 * i + j] = value_of(rows ? at[i * stride + j] : at[j * stride + i]);
}

template <typename Use, typename T>
void fill_fragment(fragment<Use, 16, 16, 16, T>& a, float with) {
  if (emulated::lane() == 0) std::fill(std::begin(a.x), std::end(a.x), with);
}

template <typename Use, typename T, typename Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& a, const T* at, unsigned stride) {
  load(at, stride, std::is_same_v<Layout, row_major>, a.x);
}
inline void load_matrix_sync(fragment<accumulator, 16, 16, 16, float>& a, const float* at,
                             unsigned stride, layout_t layout) {
  load(at, stride, layout == mem_row_major, a.x);
}

template <typename T, typename LayoutA, typename LayoutB>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& d,
              const fragment<matrix_a, 16, 16, 16, T, LayoutA>& a,
              const fragment<matrix_b, 16, 16, 16, T, LayoutB>& b,
              const fragment<accumulator, 16, 16, 16, float>& c) {
  emulated::count_product();
  if (emulated::lane() != 0) return;
  for (int i = 0; i < 16; ++i) {
    float sum[16];
    std::copy_n(c.x + 16 * i, 16, sum);
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 16; ++j) sum[j] += a.x[16 * i + k] * b.x[16 * k + j];
    std::copy_n(sum, 16, d.x + 16 * i);
  }
}

inline void store_matrix_sync(float* at, const fragment<accumulator, 16, 16, 16, float>& a,
                              unsigned stride, layout_t layout) {
  if (!works(at, stride)) return;
  for (unsigned i = 0; i < 16; ++i)
    for (unsigned j = 0; j < 16; ++j)
      at[layout == mem_row_major ? i * stride + j : j * stride + i] = a.x[16 * i + j];
}

}  // namespace nvcuda::wmma
