// A piece of a file at once, where nothing else is to be done meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "kernels/base/error.h"

namespace thermocline {

// Fills `into` from byte `offset` on, waiting for it. `name` begins messages. corrupt: the file
// ends before that; io: it cannot be read. Of a file opened with O_DIRECT, whole pages alone.
Status read_fully(int file, const std::string& name, std::uint64_t offset,
                  std::span<std::byte> into);

}  // namespace thermocline
