#include "kernels/cpu/attend.h"
#include "kernels/cpu/dense.h"
#include "kernels/cpu/matvec.h"
#include "kernels/cpu/nearest.h"
#include "kernels/cpu/sketch.h"
#include "kernels/cpu/table.h"
#include "kernels/cpu/topk.h"
#include "kernels/cpu/vec_avx512.h"
// Weights are multiplied 256 bits at a time: what a block needs besides its products (a scale, an
// offset) takes as many instructions at any width, and wide ones are the dearer ones (Zen 4: 1.4
// times the time for Q4_1, twice for F16).
#include "kernels/cpu/vec_avx2.h"

namespace thermocline {

extern const CpuTable kAvx512Table, kAvx512AmxTable;
constinit const CpuTable kAvx512Table{
    .name = VecAvx512::name,
    .gemm = GemmType::f32,
    .attend = make_attend<VecAvx512>(),
    .dense = make_dense<VecAvx512>(),
    .matvec = make_matvec<VecAvx2>(),
    .nearest = make_nearest<VecAvx512>(),
    .sketch = make_sketch<VecAvx512>(),
    .topk = make_topk<VecAvx512>(),
};

// Where there is AMX, bf16 is fast in oneDNN's tiles, and pairs of it are half as fast as floats in
// vector registers (Sapphire Rapids): so attention stays with floats.
constinit const CpuTable kAvx512AmxTable{
    .name = "avx512_amx",
    .gemm = GemmType::bf16,
    .attend = make_attend<VecAvx512>(),
    .dense = make_dense<VecAvx512>(),
    .matvec = make_matvec<VecAvx2>(),
    .nearest = make_nearest<VecAvx512>(),
    .sketch = make_sketch<VecAvx512>(),
    .topk = make_topk<VecAvx512>(),
};

}  // namespace thermocline
