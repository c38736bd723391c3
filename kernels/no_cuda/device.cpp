// What a build without CUDA says of devices.
#include "kernels/device.h"

namespace thermocline {

Result<std::unique_ptr<Device>> open_device(std::uint32_t) {
  return fail(ErrorCode::unsupported,
              "this build has no CUDA: build where nvcc is (-DTHERMOCLINE_CUDA=ON)");
}

Status device_attends(HeadShape, const Fold&) {
  return fail(ErrorCode::unsupported, "this build has no CUDA");
}

PrefillBytes prefill_bytes(const PrefillShape&, std::uint32_t, std::uint64_t) { return {}; }

Result<ChoiceBytes> choice_bytes(const ChoiceFormat&, const ChoiceBounds&, std::uint32_t) {
  return fail(ErrorCode::unsupported, "this build has no CUDA");
}


Result<StepBytes> step_bytes(const StepBounds&) {
  return fail(ErrorCode::unsupported, "this build has no CUDA");
}

}  // namespace thermocline
