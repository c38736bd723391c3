#include "kernels/cpu/make_table.h"
#include "kernels/cpu/vec_avx512_bf16.h"

namespace thermocline {

extern const CpuTable kAvx512Bf16Table;
constinit const CpuTable kAvx512Bf16Table =
    make_table<VecAvx512Bf16>("avx512_bf16", GemmType::bf16);

}  // namespace thermocline
