// Linear algebra for what is fitted to rows when they are sealed: products and eigenvectors of
// symmetric matrices, by OpenBLAS and its LAPACK. All of it computes on the thread that calls it,
// and any thread may call it; the same operands give the same bits, on one processor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/error.h"

namespace thermocline {

// OpenBLAS's own pool and oneTBB's would wait for each other. Everything below asks for it; whoever
// calls OpenBLAS otherwise (FAISS) has to.
void hold_blas_to_one_thread();

// out [count][most] = rows [count][n] * basis [most][n]^T.
void project(const float* rows, std::size_t count, std::uint32_t n, const float* basis,
             std::uint32_t most, float* out);
// Adds rows^T rows of rows [count][n] to the upper triangle of a matrix [n][n].
void add_squares(const double* rows, std::size_t count, std::uint32_t n, double* matrix);

struct Eigen {
  std::vector<double> values;  // [count], the largest first
  Buffer vectors;              // double [count][n], orthonormal
};
// The `count` largest eigenvalues, at least 1, of a symmetric matrix [n][n] of finite numbers, by
// its upper triangle, which is destroyed. unsupported: LAPACK gave up. exhausted: no memory.
Result<Eigen> largest_eigenvectors(double* matrix, std::uint32_t n, std::uint32_t count);

}  // namespace thermocline
