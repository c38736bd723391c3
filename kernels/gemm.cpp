#include "kernels/gemm.h"

#include <omp.h>
#include <signal.h>
#include <oneapi/dnnl/dnnl.hpp>

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
    {"avx512_bf16", dnnl_cpu_isa_avx512_core_bf16},
    {"avx512_amx", dnnl_cpu_isa_avx512_core_amx},
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

namespace {

// The tile's weights in scratch, as x's type.
void read_tile(const CpuTable& cpu, WeightView w, std::size_t first, std::size_t rows,
               GemmType type, std::byte* scratch) {
  if (type == GemmType::f32) {
    auto* out = reinterpret_cast<float*>(scratch);
    for (std::size_t r = 0; r < rows; ++r) cpu.matvec.dequantize(w, first + r, out + r * w.cols);
    return;
  }
  auto* row = reinterpret_cast<float*>(scratch);
  auto* out = reinterpret_cast<bf16*>(row + w.cols);
  for (std::size_t r = 0; r < rows; ++r) {
    cpu.matvec.dequantize(w, first + r, row);
    cpu.dense.to_bfloat(row, w.cols, out + r * w.cols);
  }
}

// out = x * weights^T. oneDNN keeps the code that it makes for a shape, so that describing a
// product anew costs 4 us of the 200 or more that it takes.
void multiply(const GemmRows& x, const void* weights, MatView<float> out) {
  using dnnl::memory;
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const auto size = [](std::size_t n) { return static_cast<memory::dim>(n); };
  const auto type = x.type == GemmType::f32 ? memory::data_type::f32 : memory::data_type::bf16;
  const memory::desc x_shape({size(x.rows), size(x.cols)}, type, memory::dims{size(x.stride), 1});
  const memory::desc w_shape({size(x.cols), size(out.cols())}, type, memory::dims{1, size(x.cols)});
  const memory::desc out_shape({size(x.rows), size(out.cols())}, memory::data_type::f32,
                               memory::dims{size(out.stride()), 1});
  const dnnl::matmul product(
      dnnl::matmul::primitive_desc(dnnl::matmul::desc(x_shape, w_shape, out_shape), engine));
  dnnl::stream stream(engine);
  product.execute(stream, {{DNNL_ARG_SRC, memory(x_shape, engine, const_cast<void*>(x.data))},
                           {DNNL_ARG_WEIGHTS, memory(w_shape, engine, const_cast<void*>(weights))},
                           {DNNL_ARG_DST, memory(out_shape, engine, out.data())}});
  stream.wait();
}

}  // namespace

Status gemm_tile(const CpuTable& cpu, WeightView w, std::size_t tile, const GemmRows& x,
                 MatView<float> out, std::span<std::byte> scratch) {
  TL_CHECK(tile < gemm_tiles(w.rows));
  TL_CHECK(x.cols == w.cols && out.cols() == w.rows && out.rows() == x.rows);
  TL_CHECK(scratch.size() >= gemm_scratch(x.type, w.cols));
  if (x.rows == 0 || w.cols == 0) return {};
  const std::size_t first = tile * kGemmTileRows;
  const std::size_t rows = std::min(kGemmTileRows, w.rows - first);
  read_tile(cpu, w, first, rows, x.type, scratch.data());
  const std::byte* weights =
      scratch.data() + (x.type == GemmType::f32 ? 0 : w.cols * sizeof(float));

  const OneDnnCall call;
  try {
    multiply(x, weights, {out.data() + first, out.rows(), rows, out.stride()});
  } catch (const dnnl::error& error) {
    return fail(ErrorCode::exhausted, "oneDNN could not multiply ", x.rows, " x ", w.cols, " by ",
                rows, " rows: ", error.what(), " (status ", static_cast<int>(error.status), ")");
  }
  return {};
}

}  // namespace thermocline
