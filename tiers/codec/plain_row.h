// A head's row as floats, keys without their rotary embedding: what codecs work on that have keys
// be as alike at all positions as they can be.
#pragma once

#include <cstdint>

#include "kernels/base/half.h"
#include "kernels/rotation.h"

namespace thermocline {

// `dim` channels to `out`. Null `rotation`: of a value, or of a key without a position. What is
// turned back beyond the f16s is held at the largest.
void plain_row(const f16* row, std::uint32_t dim, const Rotation* rotation, std::uint32_t position,
               float* out);

// Holds what is finite at the largest f16s.
void clamp_to_f16(std::uint32_t dim, float* x);

}  // namespace thermocline
