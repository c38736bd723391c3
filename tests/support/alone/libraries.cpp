// The rooms without the libraries below them: what oneDNN, oneTBB, OpenBLAS and hwloc do there,
// done plainly by one thread. A program that has this file needs the C library alone, and can be
// carried to a machine that has nothing else; its rooms come from an archive, which then gives no
// second one of these functions.
#include <sys/sysinfo.h>
#include <xxhash.h>

#include <algorithm>

#include "kernels/base/team.h"
#include "kernels/base/workers.h"
#include "kernels/eigen.h"
#include "kernels/gemm.h"
#include "tiers/numa.h"
#include "tiers/topology.h"

// xxHash's choice among instruction sets, which its archive lacks: the plain one.
extern "C" XXH64_hash_t XXH3_64bits_withSeed_dispatch(const void* data, std::size_t bytes,
                                                      XXH64_hash_t seed) {
  return XXH3_64bits_withSeed(data, bytes, seed);
}

namespace thermocline {

struct Workers::Arena {};
int Workers::usable(int) { return 1; }
Workers::Workers(int) : team_(std::make_unique<Team>(0)), threads_(1) {}
Workers::~Workers() = default;
Workers::Attention::Attention(const Workers& workers) : team_(*workers.team_) {}
Workers::Attention::~Attention() = default;
bool Workers::watched() const { return false; }
std::size_t Workers::slot() { return 0; }
void Workers::run(std::size_t count, std::size_t, Call call, const void* body) const {
  if (count > 0) call(body, 0, count);
}

Status bind_gemm(std::string_view) { return {}; }
Status gemm_tile(const CpuTable& cpu, WeightView w, std::size_t tile, const GemmRows& x,
                 MatView<float> out, std::span<std::byte> scratch) {
  auto* const weights = reinterpret_cast<float*>(scratch.data());
  const std::size_t first = tile * kGemmTileRows;
  for (std::size_t r = first; r < std::min(w.rows, first + kGemmTileRows); ++r) {
    cpu.matvec.dequantize(w, r, weights);
    for (std::size_t t = 0; t < x.rows; ++t) {
      double sum = 0.0;
      for (std::size_t i = 0; i < x.cols; ++i) {
        const std::size_t at = t * x.stride + i;
        const float value = x.type == GemmType::f32
                                ? static_cast<const float*>(x.data)[at]
                                : to_float(static_cast<const bf16*>(x.data)[at]);
        sum += double{weights[i]} * double{value};
      }
      out.row(t)[r] = static_cast<float>(sum);
    }
  }
  return {};
}

// Only what is fitted to rows asks for these, which no device attends.
void hold_blas_to_one_thread() {}
void project(const float*, std::size_t, std::uint32_t, const float*, std::uint32_t, float*) {
  TL_CHECK(!"made without OpenBLAS");
}
void add_squares(const double*, std::size_t, std::uint32_t, double*) {
  TL_CHECK(!"made without OpenBLAS");
}
Result<Eigen> largest_eigenvectors(double*, std::uint32_t, std::uint32_t) {
  return fail(ErrorCode::unsupported, "made without OpenBLAS");
}

struct NumaNodes::Machine {};
NumaNodes::NumaNodes() = default;
NumaNodes::NumaNodes(NumaNodes&&) noexcept = default;
NumaNodes::~NumaNodes() = default;
const NumaNodes& NumaNodes::of_process() {
  static const NumaNodes kNone;
  return kNone;
}
bool NumaNodes::spread(std::span<std::byte>) const { return true; }

Result<Topology> read_topology(const SystemFolders&) {
  struct sysinfo system = {};
  if (sysinfo(&system) != 0) return fail(ErrorCode::io, "the machine could not be read");
  Topology machine;
  machine.cores = machine.threads = 1;
  machine.memory_bytes = system.totalram * system.mem_unit;
  machine.available_bytes = system.freeram * system.mem_unit;
  return machine;
}
std::string Topology::text() const { return "a machine of which only the memory is asked"; }

}  // namespace thermocline
