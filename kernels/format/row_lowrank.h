// Rows of all heads of a layer together, as sums of a few basis vectors: a row has no bytes of its
// own, all is in the fit. What is rebuilt is the row before its rotary embedding, which is then
// rotated to its position: ShadowKV's keys (arXiv 2410.21465). Some rows, where a sum would be far
// from them, are kept as they were beside that.
//
// A fit's common part:
//   u32 rank              a multiple of 16, at most kMaxRank
//   f32 captured          share of the squares of the rows that it was made of
//   f16 [heads][rank][dim]  basis vectors: orthonormal over all heads' channels
// and its own:
//   u32 kept              rows of all heads that are as they were
//   f32 captured          share of the squares of this segment's rows
//   f16 [rows][rank]      coefficients, in the order of positions
//   u32 [heads + 1]       where each head's kept rows begin, the first 0, the last `kept`
//   f16 [kept][dim]       those rows, rotated
//   u16 [kept]            their numbers, ascending within a head
#pragma once

#include <algorithm>
#include <span>

#include "kernels/base/half.h"
#include "kernels/format/fit.h"
#include "kernels/format/row.h"
#include "kernels/format/turned_row.h"

namespace thermocline {
namespace {

struct RowLowRank {
  static constexpr RowFormat kFormat = RowFormat::lowrank;
  static constexpr bool kRotated = false;
  static constexpr bool kFitted = true;
  static constexpr std::uint32_t kRankUnit = 16, kMaxRank = 1024;
  static constexpr std::size_t kHeader = sizeof(std::uint32_t) + sizeof(float);

  static constexpr std::uint32_t bytes(std::uint32_t) { return 0; }
  static constexpr std::uint64_t common_bytes(std::uint32_t heads, std::uint32_t rank,
                                              std::uint32_t dim) {
    return kHeader + std::uint64_t{heads} * rank * dim * sizeof(f16);
  }
  static constexpr std::uint64_t own_bytes(std::uint32_t heads, std::uint64_t rows,
                                           std::uint32_t rank, std::uint32_t dim,
                                           std::uint64_t kept) {
    return kHeader + rows * rank * sizeof(f16) + (heads + 1) * sizeof(std::uint32_t) +
           kept * (dim + 1) * sizeof(f16);
  }

  static std::uint32_t word(const std::byte* at) {
    return *reinterpret_cast<const std::uint32_t*>(at);
  }
  static std::uint32_t rank(const SideFit& fit) { return word(fit.common); }
  static const f16* basis(const SideFit& fit, std::uint32_t dim) {
    return reinterpret_cast<const f16*>(fit.common + kHeader) +
           std::size_t{fit.head} * rank(fit) * dim;
  }
  static const f16* coefficients(const SideFit& fit, std::uint32_t offset) {
    return reinterpret_cast<const f16*>(fit.own + kHeader) + std::size_t{offset} * rank(fit);
  }
  // The head's rows that are as they were, by their numbers.
  struct Kept {
    std::span<const std::uint16_t> numbers;
    const f16* rows = nullptr;  // [numbers][dim]
  };
  static Kept kept(const SideFit& fit, std::uint32_t dim) {
    const std::size_t kept = word(fit.own);
    const auto* first = reinterpret_cast<const std::uint32_t*>(coefficients(fit, fit.rows));
    const auto* rows = reinterpret_cast<const f16*>(first + fit.heads + 1);
    const auto* numbers = reinterpret_cast<const std::uint16_t*>(rows + kept * dim);
    const std::size_t begin = first[fit.head], end = first[fit.head + 1];
    return {{numbers + begin, end - begin}, rows + begin * dim};
  }
  // Null, unless the row is kept as it was.
  static const f16* kept_row(const SideFit& fit, std::uint32_t number, std::uint32_t dim) {
    if (word(fit.own) == 0) return nullptr;
    const Kept of = kept(fit, dim);
    const auto at = std::ranges::lower_bound(of.numbers, number);
    return at != of.numbers.end() && *at == number ? of.rows + (at - of.numbers.begin()) * dim
                                                   : nullptr;
  }

  static void read(const SideFit& fit, std::uint32_t number, const std::byte*, std::uint32_t dim,
                   float* out) {
    if (const f16* kept = kept_row(fit, number, dim)) {
      for (std::uint32_t i = 0; i < dim; ++i) out[i] = to_float(kept[i]);
      return;
    }
    const f16* along = coefficients(fit, fit.offset_of(number));
    for (std::uint32_t i = 0; i < dim; ++i) {
      double sum = 0;
      for (std::uint32_t k = 0; k < rank(fit); ++k)
        sum += double{to_float(along[k])} * double{to_float(basis(fit, dim)[k * dim + i])};
      out[i] = static_cast<float>(sum);
    }
    turn_row(fit, number, out);
  }

  static constexpr int kRows = 4;  // for which a basis vector is loaded once

  // Channels [i, i + kVecs * lanes) of kRows rows.
  template <typename V, int kVecs>
  static void add_up(const f16* basis, const float (*along)[kMaxRank], std::uint32_t rank,
                     std::uint32_t dim, std::uint32_t i, float* const* out) {
    typename V::F sum[kRows][kVecs];
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVecs; ++v) sum[r][v] = V::zero();
    for (std::uint32_t k = 0; k < rank; ++k) {
      typename V::F b[kVecs];
      for (int v = 0; v < kVecs; ++v) b[v] = V::load(basis + k * dim + i + v * V::lanes);
      for (int r = 0; r < kRows; ++r) {
        const typename V::F x = V::set(along[r][k]);
        for (int v = 0; v < kVecs; ++v) sum[r][v] = V::fma(x, b[v], sum[r][v]);
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVecs; ++v) V::store(out[r] + i + v * V::lanes, sum[r][v]);
  }

  template <typename V>
  static void rebuild(const SideFit& fit, const std::byte* const*, const std::uint32_t* numbers,
                      int count, std::uint32_t dim, float* out) {
    alignas(64) float along[kRows][kMaxRank];
    const std::uint32_t of_rank = rank(fit);
    const f16* vectors = basis(fit, dim);
    for (int first = 0; first < count; first += kRows) {
      float* row[kRows];
      for (int r = 0; r < kRows; ++r) {
        const int at = std::min(first + r, count - 1);  // after the last, that one again
        const f16* from = coefficients(fit, fit.offset_of(numbers[at]));
        for (std::uint32_t k = 0; k < of_rank; k += V::lanes)
          V::store(along[r] + k, V::load(from + k));
        row[r] = out + static_cast<std::size_t>(at) * dim;
      }
      std::uint32_t i = 0;
      for (; i + 2 * V::lanes <= dim; i += 2 * V::lanes)
        add_up<V, 2>(vectors, along, of_rank, dim, i, row);
      for (; i < dim; i += V::lanes) add_up<V, 1>(vectors, along, of_rank, dim, i, row);
    }
    for (int r = 0; r < count; ++r, out += dim) {
      if (const f16* kept = kept_row(fit, numbers[r], dim)) {
        for (std::uint32_t i = 0; i < dim; i += V::lanes) V::store(out + i, V::load(kept + i));
      } else {
        turn_row(fit, numbers[r], out);
      }
    }
  }
};

}  // namespace
}  // namespace thermocline
