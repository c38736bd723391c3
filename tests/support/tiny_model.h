// A sound little network as a GGUF file in memory, to be spoiled before it is written: one entry of
// its metadata or one tensor at a time.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "kernels/format/weight.h"
#include "tests/support/gguf_writer.h"

namespace thermocline::test {

struct TinyTensor {
  WeightType type = WeightType::f32;
  std::vector<std::uint64_t> dims;  // dims[0] is the fastest
};

struct TinyModel {
  using Value = std::variant<std::uint32_t, std::uint64_t, float, bool, std::string>;
  std::map<std::string, Value> metadata;
  std::map<std::string, TinyTensor> tensors;

  // Width 64, 2 layers (gemma3: 7), 4 heads of 16 over 2 KV heads, 96 hidden, 40 words.
  static TinyModel make(const std::string& architecture);
  // Weights are small numbers that differ.
  Bytes bytes() const;
};

}  // namespace thermocline::test
