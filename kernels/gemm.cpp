#include "kernels/gemm.h"

#include <omp.h>

#include <oneapi/dnnl/dnnl.h>
#include <algorithm>

namespace thermocline {
namespace {

// oneDNN would start OpenMP's threads below ours. OpenMP keeps the number by thread, and the thread
// may be the caller's own: it gets its number back.
class OneThread {
 public:
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  const int before_ = omp_get_max_threads();
};

}  // namespace

Status gemm_tile(const MatvecOps& ops, WeightView w, std::size_t tile, MatView<const float> x,
                 MatView<float> out, std::span<float> scratch) {
  TL_CHECK(tile < gemm_tiles(w.rows));
  TL_CHECK(x.cols() == w.cols && out.cols() == w.rows && out.rows() == x.rows());
  TL_CHECK(scratch.size() >= gemm_scratch(w.cols));
  if (x.rows() == 0 || w.cols == 0) return {};
  const std::size_t first = tile * kGemmTileRows;
  const std::size_t rows = std::min(kGemmTileRows, w.rows - first);
  for (std::size_t r = 0; r < rows; ++r) ops.dequantize(w, first + r, scratch.data() + r * w.cols);

  const OneThread alone;
  const auto size = [](std::size_t n) { return static_cast<dnnl_dim_t>(n); };
  const dnnl_status_t status = dnnl_sgemm('N', 'T', size(x.rows()), size(rows), size(w.cols), 1.0f,
                                          x.data(), size(x.stride()), scratch.data(), size(w.cols),
                                          0.0f, out.data() + first, size(out.stride()));
  if (status != dnnl_success)
    return fail(ErrorCode::exhausted, "oneDNN could not multiply ", x.rows(), " x ", w.cols, " by ",
                rows, " rows: status ", static_cast<int>(status));
  return {};
}

}  // namespace thermocline
