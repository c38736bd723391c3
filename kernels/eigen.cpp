#include "kernels/eigen.h"

#include <cblas.h>

#include <algorithm>
#include <mutex>

// Debian's headers of LAPACK are in a package of their own; the routine is in OpenBLAS.
extern "C" void dsyevr_(const char* jobz, const char* range, const char* uplo, const int* n,
                        double* a, const int* lda, const double* vl, const double* vu,
                        const int* il, const int* iu, const double* abstol, int* m, double* w,
                        double* z, const int* ldz, int* isuppz, double* work, const int* lwork,
                        int* iwork, const int* liwork, int* info, std::size_t, std::size_t,
                        std::size_t);

namespace thermocline {

void hold_blas_to_one_thread() {
  static std::once_flag once;
  std::call_once(once, [] { openblas_set_num_threads(1); });
}

void project(const float* rows, std::size_t count, std::uint32_t n, const float* basis,
             std::uint32_t most, float* out) {
  hold_blas_to_one_thread();
  const int wide = static_cast<int>(n), tall = static_cast<int>(most);
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(count), tall, wide, 1.0f,
              rows, wide, basis, wide, 0.0f, out, tall);
}

void add_squares(const double* rows, std::size_t count, std::uint32_t n, double* matrix) {
  hold_blas_to_one_thread();
  const int wide = static_cast<int>(n);
  cblas_dsyrk(CblasRowMajor, CblasUpper, CblasTrans, wide, static_cast<int>(count), 1.0, rows, wide,
              1.0, matrix, wide);
}

// Buffers are page aligned, so that no kernel of the library sees another alignment another time.
Result<Eigen> largest_eigenvectors(double* matrix, std::uint32_t n, std::uint32_t count) {
  TL_CHECK(count >= 1 && count <= n);
  hold_blas_to_one_thread();
  const int size = static_cast<int>(n), first = static_cast<int>(n - count + 1);
  const double none = 0;
  Eigen eigen;
  TL_TRY_ASSIGN(eigen.vectors, Buffer::create(std::size_t{count} * n * sizeof(double)));
  TL_TRY_ASSIGN(const Buffer values, Buffer::create(n * sizeof(double)));
  std::vector<int> support(2 * std::size_t{n});
  int found = 0, info = 0;
  const auto solve = [&](double* work, int work_size, int* words, int words_size) {
    // A row-major upper triangle is a column-major lower one.
    dsyevr_("V", "I", "L", &size, matrix, &size, &none, &none, &first, &size, &none, &found,
            values.as<double>().data(), eigen.vectors.as<double>().data(), &size, support.data(),
            work, &work_size, words, &words_size, &info, 1, 1, 1);
  };
  double work_size = 0;
  int words_size = 0;
  solve(&work_size, -1, &words_size, -1);  // asks for the sizes
  TL_TRY_ASSIGN(const Buffer work,
                Buffer::create(static_cast<std::size_t>(work_size) * sizeof(double)));
  std::vector<int> words(static_cast<std::size_t>(words_size));
  solve(work.as<double>().data(), static_cast<int>(work_size), words.data(), words_size);
  if (info != 0 || found != static_cast<int>(count))
    return fail(ErrorCode::unsupported, "LAPACK found ", found, " of ", count,
                " eigenvectors of a matrix of ", n, " (dsyevr: ", info, ")");
  // They ascend.
  const double* value = values.as<double>().data();
  eigen.values.assign(value, value + count);
  std::reverse(eigen.values.begin(), eigen.values.end());
  double* vector = eigen.vectors.as<double>().data();
  for (std::uint32_t i = 0; i < count / 2; ++i)
    std::swap_ranges(vector + std::size_t{i} * n, vector + std::size_t{i + 1} * n,
                     vector + std::size_t{count - 1 - i} * n);
  return eigen;
}

}  // namespace thermocline
