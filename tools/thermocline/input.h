// Bytes from a descriptor, where Ctrl-C is heard even while there is nothing to read.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/base/error.h"

namespace thermocline {

// How many came, 0 at the end. cancelled: interrupted(), before or while waiting.
Result<std::size_t> read_some(int descriptor, std::span<char> into);

}  // namespace thermocline
