#include "kernels/cpu/attend.h"
#include "kernels/cpu/dense.h"
#include "kernels/cpu/matvec.h"
#include "kernels/cpu/nearest.h"
#include "kernels/cpu/sketch.h"
#include "kernels/cpu/table.h"
#include "kernels/cpu/topk.h"
#include "kernels/cpu/vec_avx512_bf16.h"
// Weights are multiplied 256 bits at a time: what a block needs besides its products (a scale, an
// offset) takes as many instructions at any width, and wide ones are the dearer ones (Zen 4: 1.4
// times the time for Q4_1, twice for F16).
#include "kernels/cpu/vec_avx2.h"

namespace thermocline {

extern const CpuTable kAvx512Bf16Table;
constinit const CpuTable kAvx512Bf16Table{
    .name = VecAvx512Bf16::name,
    .gemm = GemmType::bf16,
    .attend = make_attend<VecAvx512Bf16>(),
    .dense = make_dense<VecAvx512Bf16>(),
    .matvec = make_matvec<VecAvx2>(),
    .nearest = make_nearest<VecAvx512Bf16>(),
    .sketch = make_sketch<VecAvx512Bf16>(),
    .topk = make_topk<VecAvx512Bf16>(),
};

}  // namespace thermocline
