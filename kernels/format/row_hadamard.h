// A row's channels after a Hadamard rotation, put in another order, in groups of 32 of which each
// is a block of kivi2.h or q4_1.h: RotateKV (arXiv 2501.16383). Keys are so before their rotary
// embedding, and are then rotated to their position.
//
// A fit's own bytes: u16 [heads][dim], which of the rotated channels lies there; each once.
#pragma once

#include "kernels/cpu/hadamard.h"
#include "kernels/format/fit.h"
#include "kernels/format/kivi2.h"
#include "kernels/format/q4_1.h"
#include "kernels/format/row.h"
#include "kernels/format/turned_row.h"

namespace thermocline {
namespace {

template <typename Q, RowFormat kCoded>
struct RowHadamard {
  using Block = typename Q::Block;
  static constexpr RowFormat kFormat = kCoded;
  static constexpr bool kRotated = false;  // read() and rebuild() rotate back
  static constexpr bool kFitted = true;

  static constexpr std::uint32_t bytes(std::uint32_t dim) {
    return (dim + kRowGroup - 1) / kRowGroup * sizeof(Block);
  }
  static constexpr std::uint64_t own_bytes(std::uint32_t heads, std::uint32_t dim) {
    return std::uint64_t{heads} * dim * sizeof(std::uint16_t);
  }
  static const std::uint16_t* order(const SideFit& fit, std::uint32_t dim) {
    return reinterpret_cast<const std::uint16_t*>(fit.own) + std::size_t{fit.head} * dim;
  }

  static void read(const SideFit& fit, std::uint32_t number, const std::byte* row,
                   std::uint32_t dim, float* out) {
    const auto* groups = reinterpret_cast<const Block*>(row);
    const std::uint16_t* channel = order(fit, dim);
    for (std::uint32_t i = 0; i < dim; ++i)
      out[channel[i]] = Q::value(groups[i / kRowGroup], static_cast<int>(i % kRowGroup));
    hadamard(out, dim);
    turn_row(fit, number, out);
  }

  template <typename V>
  static void rebuild(const SideFit& fit, const std::byte* const* rows,
                      const std::uint32_t* numbers, int count, std::uint32_t dim, float* out) {
    alignas(64) float coded[kMaxHeadSize];
    const std::uint16_t* channel = order(fit, dim);
    for (int r = 0; r < count; ++r) {
      const auto* groups = reinterpret_cast<const Block*>(rows[r]);
      float* row = out + static_cast<std::size_t>(r) * dim;
      for (std::uint32_t i = 0; i < dim; i += V::lanes)
        V::store(coded + i, Q::template load<V>(groups[i / kRowGroup], i % kRowGroup));
      for (std::uint32_t i = 0; i < dim; ++i) row[channel[i]] = coded[i];
    }
    // Not in the loop above: a vector that is read just after its floats were written one by one
    // has to wait for all of them.
    for (int r = 0; r < count; ++r, out += dim) {
      rotate<V>(out, dim);
      turn_row(fit, numbers[r], out);
    }
  }
};
using RowHadamard2 = RowHadamard<Kivi2, RowFormat::hadamard2>;
using RowHadamard4 = RowHadamard<Q4_1, RowFormat::hadamard4>;

}  // namespace
}  // namespace thermocline
