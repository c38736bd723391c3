#include "kernels/cpu/attend.h"
#include "kernels/cpu/dense.h"
#include "kernels/cpu/matvec.h"
#include "kernels/cpu/nearest.h"
#include "kernels/cpu/sketch.h"
#include "kernels/cpu/table.h"
#include "kernels/cpu/topk.h"
#include "kernels/cpu/vec_avx512.h"

namespace thermocline {

extern const CpuTable kAvx512Table;
constinit const CpuTable kAvx512Table{
    .name = VecAvx512::name,
    .attend = make_attend<VecAvx512>(),
    .dense = make_dense<VecAvx512>(),
    .matvec = make_matvec<VecAvx512>(),
    .nearest = make_nearest<VecAvx512>(),
    .sketch = make_sketch<VecAvx512>(),
    .topk = make_topk<VecAvx512>(),
};

}  // namespace thermocline
