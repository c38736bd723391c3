#include "kernels/gemm.h"

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <signal.h>

#include <algorithm>
#include <utility>

namespace thermocline {
namespace {

// What oneDNN needs of the thread that calls it, for one tile, and what the thread gets back.
//
// It would start OpenMP's threads below ours: their number, which OpenMP keeps for each thread, is
// one meanwhile. And no signal may be delivered: the AVX kernel of oneDNN 2.6 keeps data below its
// stack pointer, where a signal's frame is written, and then writes to wild addresses. A profiler's
// timer or a Ctrl-C is enough. A signal that arrives meanwhile waits for the tile's end.
class OneDnnCall {
 public:
  OneDnnCall() : threads_before_(omp_get_max_threads()) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &signals_before_);
    if (threads_before_ != 1) omp_set_num_threads(1);
  }
  ~OneDnnCall() {
    if (threads_before_ != 1) omp_set_num_threads(threads_before_);
    pthread_sigmask(SIG_SETMASK, &signals_before_, nullptr);
  }
  OneDnnCall(const OneDnnCall&) = delete;
  OneDnnCall& operator=(const OneDnnCall&) = delete;

 private:
  int threads_before_;
  sigset_t signals_before_;
};

// Names of CPU tables, and what oneDNN may use of what they use.
constexpr std::pair<std::string_view, dnnl_cpu_isa_t> kBound[] = {
    {"scalar", dnnl_cpu_isa_sse41},
    {"avx2", dnnl_cpu_isa_avx2},
    {"avx512", dnnl_cpu_isa_avx512_core_vnni},
};

}  // namespace

Status bind_gemm(std::string_view isa) {
  for (const auto& [name, bound] : kBound) {
    if (name != isa) continue;
    const dnnl_status_t status = dnnl_set_max_cpu_isa(bound);
    if (dnnl_get_effective_cpu_isa() == bound) return {};  // now, or by an earlier call
    return fail(ErrorCode::unsupported, "instruction set ", isa,
                ": oneDNN uses another one in this process already (status ",
                static_cast<int>(status), "): force it before anything is computed");
  }
  return fail(ErrorCode::invalid_argument, "oneDNN cannot be held to instruction set ", isa);
}

Status gemm_tile(const MatvecOps& ops, WeightView w, std::size_t tile, MatView<const float> x,
                 MatView<float> out, std::span<float> scratch) {
  TL_CHECK(tile < gemm_tiles(w.rows));
  TL_CHECK(x.cols() == w.cols && out.cols() == w.rows && out.rows() == x.rows());
  TL_CHECK(scratch.size() >= gemm_scratch(w.cols));
  if (x.rows() == 0 || w.cols == 0) return {};
  const std::size_t first = tile * kGemmTileRows;
  const std::size_t rows = std::min(kGemmTileRows, w.rows - first);
  for (std::size_t r = 0; r < rows; ++r) ops.dequantize(w, first + r, scratch.data() + r * w.cols);

  const OneDnnCall call;
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
