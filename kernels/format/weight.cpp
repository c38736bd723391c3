#include "kernels/format/weight.h"

#include <array>

#include "kernels/base/error.h"

namespace thermocline {
namespace {

constexpr std::array kTypes{
    WeightTypeInfo{WeightType::f32, 0, "F32", 1, 4},
    WeightTypeInfo{WeightType::f16, 1, "F16", 1, 2},
    WeightTypeInfo{WeightType::bf16, 30, "BF16", 1, 2},
    WeightTypeInfo{WeightType::q4_0, 2, "Q4_0", 32, 18},
    WeightTypeInfo{WeightType::q4_1, 3, "Q4_1", 32, 20},
    WeightTypeInfo{WeightType::q5_0, 6, "Q5_0", 32, 22},
    WeightTypeInfo{WeightType::q5_1, 7, "Q5_1", 32, 24},
    WeightTypeInfo{WeightType::q8_0, 8, "Q8_0", 32, 34},
    WeightTypeInfo{WeightType::q4_k, 12, "Q4_K", 256, 144},
    WeightTypeInfo{WeightType::q5_k, 13, "Q5_K", 256, 176},
    WeightTypeInfo{WeightType::q6_k, 14, "Q6_K", 256, 210},
};

constexpr bool in_enum_order() {
  for (std::size_t i = 0; i < kTypes.size(); ++i)
    if (static_cast<std::size_t>(kTypes[i].type) != i) return false;
  return kTypes.size() == static_cast<std::size_t>(WeightType::q6_k) + 1;
}
static_assert(in_enum_order(), "info() indexes the table by the enum");

}  // namespace

std::span<const WeightTypeInfo> weight_types() { return kTypes; }

const WeightTypeInfo& info(WeightType type) {
  const auto at = static_cast<std::size_t>(type);
  TL_CHECK(at < kTypes.size());
  return kTypes[at];
}

}  // namespace thermocline
