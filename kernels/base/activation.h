// What a feed-forward part does to its gate.
#pragma once

#include <cstdint>

namespace thermocline {

enum class Activation : std::uint8_t { silu, gelu };  // gelu in its tanh form

}  // namespace thermocline
