// The element types that a model's weights come in, as GGUF stores them: what a row's bytes are.
// One table; every reader of weights looks here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace thermocline {

enum class WeightType : std::uint8_t {
  f32,
  f16,
  bf16,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q4_k,
  q5_k,
  q6_k,
};

struct WeightTypeInfo {
  WeightType type;
  std::uint32_t gguf_id;       // ggml_type in the file
  std::string_view name;       // as GGUF tools print it: "Q4_1"
  std::uint16_t block_values;  // values a block
  std::uint16_t block_bytes;   // bytes a block
};

// All types that can be read, in the order of the enum.
std::span<const WeightTypeInfo> weight_types();
const WeightTypeInfo& info(WeightType type);

// A row-major matrix of coded weights that someone else owns (usually the mapped model file).
// `cols` is a multiple of the type's block_values; rows follow each other without gaps.
struct WeightView {
  WeightType type = WeightType::f32;
  const std::byte* data = nullptr;
  std::size_t rows = 0, cols = 0;

  std::size_t row_bytes() const {
    const WeightTypeInfo& t = info(type);
    return cols / t.block_values * t.block_bytes;
  }
  std::size_t bytes() const { return rows * row_bytes(); }
  const std::byte* row(std::size_t r) const { return data + r * row_bytes(); }
};

}  // namespace thermocline
