// How many rows a read list reads.
#pragma once

#include <cstdint>
#include <span>

#include "tiers/block.h"

namespace thermocline {

// Of the form asked for. `runs` are those that the list was chosen of.
std::uint64_t rows_read(std::span<const Run> runs, const ReadList& list, Form form);

}  // namespace thermocline
