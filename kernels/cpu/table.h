// Every fast CPU operation, once for each instruction set: chosen once, at start, and passed down.
// The tests compare each entry with plain loops in double precision: reference.h,
// attend_reference.h, or their own.
#pragma once

#include <span>
#include <string_view>

#include "kernels/attend.h"
#include "kernels/base/error.h"
#include "kernels/dense.h"
#include "kernels/gemm_type.h"
#include "kernels/matvec.h"
#include "kernels/nearest.h"
#include "kernels/sketch.h"
#include "kernels/topk.h"

namespace thermocline {

// Functions without state: any thread may call them, on memory that no other one writes to.
struct CpuTable {
  std::string_view name;
  GemmType gemm;  // what matrix products round their operands to: bf16 where that is faster
  AttendOps attend;
  DenseOps dense;
  MatvecOps matvec;
  NearestOps nearest;
  SketchOps sketch;
  TopkOps topk;
};

// Every table of this build, plainest first, runnable here or not.
std::span<const CpuTable* const> all_cpu_tables();
// What this machine lacks to run `table`: a CPU feature, or the system's support for its registers.
// Empty: nothing.
std::string_view lacking(const CpuTable& table);
inline bool usable(const CpuTable& table) { return lacking(table).empty(); }

// `name` is "auto" (the best usable one) or a table's name. A named one that this machine cannot
// run is an error, never replaced by another.
Result<const CpuTable*> choose_cpu_table(std::string_view name);

}  // namespace thermocline
