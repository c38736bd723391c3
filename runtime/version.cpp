#include "kernels/cpu/table.h"
#include "runtime/thermocline.h"
#include "tiers/io/sink.h"

namespace thermocline {

// THERMOCLINE_VERSION, _COMMIT, _BUILD and _CUDA_BUILT: cmake/version.cmake.
Version version() {
  Version v;
  v.number = THERMOCLINE_VERSION;
  v.commit = THERMOCLINE_COMMIT;
#if defined(__clang__)
  v.compiler = std::string("clang++ ") + __clang_version__;
#else
  v.compiler = std::string("g++ ") + __VERSION__;
#endif
  v.build = THERMOCLINE_BUILD;
  for (const CpuTable* table : all_cpu_tables()) {
    v.instruction_sets.emplace_back(table->name);
    if (usable(*table)) v.usable.emplace_back(table->name);
    if (table->gemm == GemmType::bf16) v.bf16_prefill.emplace_back(table->name);
  }
  for (const std::string_view name : sink_names()) v.io_backends.emplace_back(name);
  v.cuda = THERMOCLINE_CUDA_BUILT;
  return v;
}

}  // namespace thermocline
