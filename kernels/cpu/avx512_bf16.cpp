#include "kernels/cpu/make_table.h"
#include "kernels/cpu/vec_avx2.h"
#include "kernels/cpu/vec_avx512_bf16.h"

namespace thermocline {

extern const CpuTable kAvx512Bf16Table;
constinit const CpuTable kAvx512Bf16Table =
    make_table<VecAvx512Bf16, VecAvx2>("avx512_bf16", GemmType::bf16);

}  // namespace thermocline
