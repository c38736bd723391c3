// How many channels a key or a value of one head has at most: rows of that length lie on stacks.
#pragma once

#include <cstdint>

namespace thermocline {

inline constexpr std::uint32_t kMaxHeadSize = 512;

}  // namespace thermocline
