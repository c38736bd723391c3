#include "kernels/cpu/make_table.h"
#include "kernels/cpu/vec_avx2.h"

namespace thermocline {

extern const CpuTable kAvx2Table;
constinit const CpuTable kAvx2Table = make_table<VecAvx2>("avx2", GemmType::f32);

}  // namespace thermocline
