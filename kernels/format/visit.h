// All formats, and the way from a weight type to its struct.
#pragma once

#include "kernels/format/floats.h"
#include "kernels/format/q4_0.h"
#include "kernels/format/q4_1.h"
#include "kernels/format/q4_k.h"
#include "kernels/format/q5_0.h"
#include "kernels/format/q5_1.h"
#include "kernels/format/q5_k.h"
#include "kernels/format/q6_k.h"
#include "kernels/format/q8_0.h"

namespace thermocline {
namespace {

// Calls visit(Format{}) for the format of `type`.
template <typename Visit>
inline void visit_format(WeightType type, const Visit& visit) {
  switch (type) {
    case WeightType::f32:
      return visit(F32{});
    case WeightType::f16:
      return visit(F16{});
    case WeightType::bf16:
      return visit(BF16{});
    case WeightType::q4_0:
      return visit(Q4_0{});
    case WeightType::q4_1:
      return visit(Q4_1{});
    case WeightType::q5_0:
      return visit(Q5_0{});
    case WeightType::q5_1:
      return visit(Q5_1{});
    case WeightType::q8_0:
      return visit(Q8_0{});
    case WeightType::q4_k:
      return visit(Q4K{});
    case WeightType::q5_k:
      return visit(Q5K{});
    case WeightType::q6_k:
      return visit(Q6K{});
  }
}

}  // namespace
}  // namespace thermocline
