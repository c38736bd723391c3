// Which device a thread's calls are for.
#pragma once

#include <cstdint>

#include "kernels/cuda/check.h"

namespace thermocline::cuda {

// CUDA keeps it for each thread, and whoever drives a device may come from another thread each
// time: so it is said before every call that asks for it.
inline Status make_current(std::uint32_t device) {
  return check(cudaSetDevice(static_cast<int>(device)), "choosing a device");
}

}  // namespace thermocline::cuda
