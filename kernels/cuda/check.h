// CUDA's errors as ours.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/base/error.h"

namespace thermocline::cuda {

// Ok, or an Error that names the call. The runtime also keeps a failure as the thread's "last
// error"; it is taken back here, or the next launch that looks there would be blamed for it.
Status check(cudaError_t code, const char* call);

}  // namespace thermocline::cuda
