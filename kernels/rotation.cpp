#include "kernels/rotation.h"

#include <numbers>

#include "kernels/base/error.h"

namespace thermocline {

Rotation Rotation::of(std::span<const float> inverse_frequency, RopePairs layout, float magnitude) {
  TL_CHECK(inverse_frequency.size() <= kMaxHeadSize / 2);
  Rotation rotation;
  rotation.layout = layout;
  rotation.magnitude = magnitude;
  rotation.pairs = static_cast<std::uint32_t>(inverse_frequency.size());
  for (std::uint32_t i = 0; i < rotation.pairs; ++i) {
    const double turns = double{inverse_frequency[i]} / (2 * std::numbers::pi);
    // Below 1, where doubles are 2^-53 apart: 2^64 times that is no more than fits.
    const double part = turns - std::floor(turns);
    rotation.step[i] = part < 1.0 ? static_cast<std::uint64_t>(part * 0x1.0p64) : 0;
  }
  return rotation;
}

}  // namespace thermocline
