#include "kernels/cpu/attend.h"
#include "kernels/cpu/dense.h"
#include "kernels/cpu/matvec.h"
#include "kernels/cpu/nearest.h"
#include "kernels/cpu/sketch.h"
#include "kernels/cpu/table.h"
#include "kernels/cpu/topk.h"
#include "kernels/cpu/vec_avx2.h"

namespace thermocline {

extern const CpuTable kAvx2Table;
constinit const CpuTable kAvx2Table{
    .name = VecAvx2::name,
    .gemm = GemmType::f32,
    .attend = make_attend<VecAvx2>(),
    .dense = make_dense<VecAvx2>(),
    .matvec = make_matvec<VecAvx2>(),
    .nearest = make_nearest<VecAvx2>(),
    .sketch = make_sketch<VecAvx2>(),
    .topk = make_topk<VecAvx2>(),
};

}  // namespace thermocline
