// The best instruction set of this machine that rounds nothing to 16 bits in a prefill: tests that
// hold a prefill to double precision, or to decoding, ask for it by name. Those of the rounding
// itself say how near it stays.
#pragma once

#include <string>

#include "kernels/cpu/table.h"

namespace thermocline::test {

inline std::string float_isa() {
  std::string best;
  for (const CpuTable* table : all_cpu_tables())
    if (usable(*table) && table->gemm == GemmType::f32 && table->attend.tile_type == GemmType::f32)
      best = table->name;
  return best;
}

// Whether this machine's best instruction set rounds in a prefill: "bf16", or "f32" for not.
inline std::string prefill_rounding() {
  return (*choose_cpu_table("auto"))->gemm == GemmType::bf16 ? "bf16" : "f32";
}

}  // namespace thermocline::test
