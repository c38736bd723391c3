// All row formats, and the way from a RowFormat to its struct.
#pragma once

#include "kernels/format/row_allotted.h"
#include "kernels/format/row_bf16.h"
#include "kernels/format/row_channels.h"
#include "kernels/format/row_f16.h"
#include "kernels/format/row_groups.h"
#include "kernels/format/row_hadamard.h"
#include "kernels/format/row_int8.h"
#include "kernels/format/row_lowrank.h"
#include "kernels/format/row_nuq4.h"
#include "kernels/format/row_pruned.h"
#include "kernels/format/row_rotated.h"

namespace thermocline {
namespace {

// Calls visit(Format{}) for the struct of `format`.
template <typename Visit>
inline auto visit_row(RowFormat format, const Visit& visit) {
  switch (format) {
    case RowFormat::int8:
      return visit(RowInt8{});
    case RowFormat::rotated2:
      return visit(RowRotated2{});
    case RowFormat::rotated4:
      return visit(RowRotated4{});
    case RowFormat::bf16:
      return visit(RowBf16{});
    case RowFormat::q8_0:
      return visit(RowQ8_0{});
    case RowFormat::q4_0:
      return visit(RowQ4_0{});
    case RowFormat::q4_1:
      return visit(RowQ4_1{});
    case RowFormat::q5_0:
      return visit(RowQ5_0{});
    case RowFormat::q5_1:
      return visit(RowQ5_1{});
    case RowFormat::iq4_nl:
      return visit(RowIq4Nl{});
    case RowFormat::kivi2:
      return visit(RowKivi2{});
    case RowFormat::channels2:
      return visit(RowChannels2{});
    case RowFormat::channels4:
      return visit(RowChannels4{});
    case RowFormat::lowrank:
      return visit(RowLowRank{});
    case RowFormat::nuq4:
      return visit(RowNuq4{});
    case RowFormat::hadamard2:
      return visit(RowHadamard2{});
    case RowFormat::hadamard4:
      return visit(RowHadamard4{});
    case RowFormat::pruned5:
      return visit(RowPruned5{});
    case RowFormat::pruned6:
      return visit(RowPruned6{});
    case RowFormat::allotted2:
      return visit(RowAllotted2{});
    case RowFormat::allotted3:
      return visit(RowAllotted3{});
    case RowFormat::allotted4:
      return visit(RowAllotted4{});
    case RowFormat::rotated3:
      return visit(RowRotated3{});
    case RowFormat::f16:
      break;
  }
  return visit(RowF16{});
}

}  // namespace
}  // namespace thermocline
