// A piece of a file at once, where nothing else is to be done meanwhile, and whether there is one.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "kernels/base/error.h"
#include "tiers/io/sink.h"

namespace thermocline {

// Fills `into` from byte `offset` on, waiting for it, and no longer than `patience` for any of its
// pieces. `name` begins messages. corrupt: the file ends before that; io: it cannot be read, or the
// disk does not answer. Of a file opened with O_DIRECT, whole pages alone.
Status read_fully(int file, const std::string& name, std::uint64_t offset,
                  std::span<std::byte> into, std::chrono::milliseconds patience = kDiskPatience);

// That at least half of so many bytes from `offset` on lie in the file, whose size alone says
// nothing: of a hole it costs none to claim terabytes. corrupt: before memory is taken for them.
// Whole, a system that does not know its holes says.
Status check_stored(int file, const std::string& name, std::uint64_t offset, std::uint64_t bytes);

}  // namespace thermocline
