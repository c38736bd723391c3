#include "kernels/cpu/attend.h"
#include "kernels/cpu/dense.h"
#include "kernels/cpu/matvec.h"
#include "kernels/cpu/nearest.h"
#include "kernels/cpu/sketch.h"
#include "kernels/cpu/table.h"
#include "kernels/cpu/topk.h"
#include "kernels/cpu/vec_scalar.h"

namespace thermocline {

extern const CpuTable kScalarTable;
constinit const CpuTable kScalarTable{
    .name = VecScalar::name,
    .gemm = GemmType::f32,
    .attend = make_attend<VecScalar>(),
    .dense = make_dense<VecScalar>(),
    .matvec = make_matvec<VecScalar>(),
    .nearest = make_nearest<VecScalar>(),
    .sketch = make_sketch<VecScalar>(),
    .topk = make_topk<VecScalar>(),
};

}  // namespace thermocline
