#include "kernels/format/weight.h"

#include <array>

#include "kernels/base/error.h"
#include "kernels/format/visit.h"

namespace thermocline {
namespace {

// A block, of groups of 32, is as its format says: its size is written down once.
template <typename Format>
constexpr WeightTypeInfo line(std::uint32_t gguf_id, std::string_view name) {
  if constexpr (requires { typename Format::Block; })
    return {Format::kType, gguf_id, name, 32 * Format::kGroups, sizeof(typename Format::Block)};
  else
    return {Format::kType, gguf_id, name, 1, sizeof(typename Format::Value)};
}

constexpr std::array kTypes{
    line<F32>(0, "F32"),   line<F16>(1, "F16"),   line<BF16>(30, "BF16"), line<Q4_0>(2, "Q4_0"),
    line<Q4_1>(3, "Q4_1"), line<Q5_0>(6, "Q5_0"), line<Q5_1>(7, "Q5_1"),  line<Q8_0>(8, "Q8_0"),
    line<Q4K>(12, "Q4_K"), line<Q5K>(13, "Q5_K"), line<Q6K>(14, "Q6_K"),
};

constexpr bool in_enum_order() {
  for (std::size_t i = 0; i < kTypes.size(); ++i)
    if (static_cast<std::size_t>(kTypes[i].type) != i) return false;
  return true;
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
