// What the operands of matrix products, and of attention in tiles, are rounded to. Sums are float32
// either way.
#pragma once

#include <cstddef>
#include <cstdint>

namespace thermocline {

enum class GemmType : std::uint8_t { f32, bf16 };

constexpr std::size_t value_bytes(GemmType type) { return type == GemmType::f32 ? 4 : 2; }

}  // namespace thermocline
