// Which channels of a head a rotary embedding turns together.
#pragma once

#include <cstdint>

namespace thermocline {

enum class RopePairs : std::uint8_t {
  neighbours,  // (0,1), (2,3) ...: Llama as GGUF stores it
  halves,      // (0, d/2), (1, d/2 + 1) ...: NeoX, Qwen, Gemma
};

}  // namespace thermocline
