#include "kernels/attend.h"

namespace thermocline {

void finish(const AttnState& state, std::span<float> out) {
  const float scale = state.sum > 0.0f ? 1.0f / state.sum : 0.0f;
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = state.acc[i] * scale;
}

}  // namespace thermocline
