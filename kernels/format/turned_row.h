// A key that is kept before its rotary embedding, as it is read: rotated to its position.
#pragma once

#include <cstdint>

#include "kernels/format/fit.h"

namespace thermocline {
namespace {  // compiled once for each instruction set

// Row `number`, in place; as it is where there is no rotation.
inline void turn_row(const SideFit& fit, std::uint32_t number, float* row) {
  if (fit.rotation) rotate_to(*fit.rotation, fit.first_position + fit.offset_of(number), row);
}

}  // namespace
}  // namespace thermocline
