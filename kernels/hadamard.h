// The rotation that codes are made after: it spreads what is large in a few channels over all.
#pragma once

#include <cstddef>

namespace thermocline {

// In place fast Walsh-Hadamard transform, orthonormal and its own inverse, of the largest power of
// two that divides n, block by block (n = 96: three blocks of 32).
void hadamard(float* x, std::size_t n);

}  // namespace thermocline
