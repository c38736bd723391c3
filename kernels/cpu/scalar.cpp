#include "kernels/cpu/make_table.h"
#include "kernels/cpu/vec_scalar.h"

namespace thermocline {

extern const CpuTable kScalarTable;
constinit const CpuTable kScalarTable = make_table<VecScalar>("scalar", GemmType::f32);

}  // namespace thermocline
