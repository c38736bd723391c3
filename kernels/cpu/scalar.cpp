#include "kernels/cpu/attend.h"
#include "kernels/cpu/dense.h"
#include "kernels/cpu/matvec.h"
#include "kernels/cpu/table.h"
#include "kernels/cpu/vec_scalar.h"

namespace thermocline {

extern const CpuTable kScalarTable;
const CpuTable kScalarTable{
    .name = VecScalar::name,
    .attend = make_attend<VecScalar>(),
    .dense = make_dense<VecScalar>(),
    .matvec = make_matvec<VecScalar>(),
};

}  // namespace thermocline
