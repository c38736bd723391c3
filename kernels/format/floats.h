// F32, F16 and BF16: weights that are floats already.
#pragma once

#include "kernels/format/group.h"

namespace thermocline {
namespace {

struct F32 {
  static constexpr WeightType kType = WeightType::f32;
  using Value = float;
  static constexpr float value(float x) { return x; }
};

struct F16 {
  static constexpr WeightType kType = WeightType::f16;
  using Value = f16;
  static constexpr float value(f16 x) { return to_float(x); }
};

struct BF16 {
  static constexpr WeightType kType = WeightType::bf16;
  using Value = bf16;
  static constexpr float value(bf16 x) { return to_float(x); }
};

}  // namespace
}  // namespace thermocline
