#include "kernels/cuda/check.h"

namespace thermocline::cuda {
namespace {

ErrorCode meaning(cudaError_t code) {
  switch (code) {
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDevice:
      return ErrorCode::not_found;
    case cudaErrorMemoryAllocation:
      return ErrorCode::exhausted;
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
      return ErrorCode::invalid_argument;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return ErrorCode::unsupported;
    default:
      return ErrorCode::io;
  }
}

// "13.0"; a driver that is not there has version 0.
std::string version_name(int version) {
  if (version == 0) return "none";
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

Status check(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return {};
  static_cast<void>(cudaGetLastError());
  if (code != cudaErrorInsufficientDriver)
    return fail(meaning(code), call, ": ", cudaGetErrorName(code), ": ", cudaGetErrorString(code));
  // The runtime says this of a driver that is too old and of none at all: tell them apart.
  int driver = 0, runtime = 0;
  static_cast<void>(cudaDriverGetVersion(&driver));
  static_cast<void>(cudaRuntimeGetVersion(&runtime));
  return fail(meaning(code), call, ": ", cudaGetErrorName(code), ": this build needs a driver for ",
              "CUDA ", version_name(runtime), ", installed: ", version_name(driver));
}

}  // namespace thermocline::cuda
