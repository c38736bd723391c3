#include "kernels/cpu/make_table.h"
#include "kernels/cpu/vec_avx512_bf16.h"
// Weights are multiplied 256 bits at a time: what a block needs besides its products (a scale, an
// offset) takes as many instructions at any width, and wide ones are the dearer ones (Zen 4: 1.4
// times the time for Q4_1, twice for F16).
#include "kernels/cpu/vec_avx2.h"

namespace thermocline {

extern const CpuTable kAvx512Bf16Table;
constinit const CpuTable kAvx512Bf16Table =
    make_table<VecAvx512Bf16, VecAvx2>("avx512_bf16", GemmType::bf16);

}  // namespace thermocline
