// AttendOps over a Vec. Decode walks rows and keeps lanes along the head size; prefill
// (attend_tile.h) keeps them along queries. How rows are coded is asked once for each side of a
// fold.
#pragma once

#include "kernels/attend.h"
#include "kernels/cpu/attend_tile.h"
#include "kernels/cpu/fold_rows.h"
#include "kernels/cpu/hadamard.h"
#include "kernels/cpu/vec.h"
#include "kernels/format/visit_row.h"

namespace thermocline {
namespace {

template <typename V>
struct Attend {
  using F = typename V::F;
  static constexpr int L = V::lanes;

  using Rows = FoldRows;

  // Rows that are asked for before they are met: covers the latency of scattered ones. Values come
  // with their keys, since rows are read from memory faster from one end to the other; a long
  // fold's have left the first cache when their turn comes, and are asked for again.
  static constexpr int kAhead = 16;

  // Bytes [from, to) of a row. Inlined by force: the compiler takes a function that only prefetches
  // for one without effect.
  __attribute__((always_inline)) static void fetch_row(const std::byte* row, std::uint32_t from,
                                                       std::uint32_t to) {
    for (std::uint32_t i = from; i < to; i += 64) __builtin_prefetch(row + i);
  }

  // Whether rows come from memory slower than they are attended: then it is kept at work through
  // the whole of a fold, two lines a row and phase. Of coded rows it is the arithmetic that lasts,
  // and asking for them early costs more than it gives.
  template <typename Format>
  static constexpr bool kAsksAhead = Format::bytes(kRowGroup) >= 2 * kRowGroup;

  // score[h][first + r] for kRows rows and kHeads query heads: a key is converted once for all
  // heads, a query loaded once for all rows.
  template <typename Format, int kHeads, int kRows>
  static void score_rows(const float* query, std::uint32_t dim, const std::byte* const* row,
                         int first, float (*score)[kFoldRows]) {
    using Reader = typename Format::template Reader<V>;
    const auto key = [&](int r) { return Reader(row[r < kRows ? r : 0], dim); };
    const Reader keys[4] = {key(0), key(1), key(2), key(3)};
    F sum[kHeads][kRows];
    for (int h = 0; h < kHeads; ++h)
      for (int r = 0; r < kRows; ++r) sum[h][r] = V::zero();
    const auto add = [&](std::uint32_t group, std::uint32_t at) __attribute__((always_inline)) {
      F k[kRows];
      for (int r = 0; r < kRows; ++r) k[r] = keys[r].load(group, at);
      for (int h = 0; h < kHeads; ++h) {
        const F q = V::load(query + h * dim + group + at);
        for (int r = 0; r < kRows; ++r) sum[h][r] = V::fma(k[r], q, sum[h][r]);
      }
    };
    if constexpr (kGrouped<Format>) {
      std::uint32_t group = 0;
      for (; group + kRowGroup <= dim; group += kRowGroup) {
#pragma GCC unroll 4
        for (std::uint32_t at = 0; at < kRowGroup; at += L) add(group, at);
      }
      for (std::uint32_t at = 0; group + at < dim; at += L) add(group, at);
    } else {
      for (std::uint32_t i = 0; i < dim; i += L) add(i, 0);
    }
    for (int h = 0; h < kHeads; ++h)
      if constexpr (kRows == 4)
        V::sums4(sum[h], score[h] + first);
      else
        for (int r = 0; r < kRows; ++r) score[h][first + r] = V::sum(sum[h][r]);
  }

  // Rows at once, whose sums fit the register file.
  template <int kHeads>
  static constexpr int kScored = L == 16       ? 4
                                 : kHeads <= 3 ? 3
                                               : 2;

  template <typename Format, int kHeads>
  static void score(const float* query, std::uint32_t dim, const Rows& rows, RowsAhead& ahead,
                    float (*score)[kFoldRows]) {
    constexpr int kRows = kScored<kHeads>;
    const std::uint32_t bytes = Format::bytes(dim);
    const auto fetch = [&](int first, int end) __attribute__((always_inline)) {
      for (int r = first; r < std::min(end, rows.count); ++r) {
        fetch_row(rows.key[r], 0, bytes);
        fetch_row(rows.value[r], 0, bytes);
      }
    };
    fetch(0, kAhead);
    int r = 0;
    for (; r + kRows <= rows.count; r += kRows) {
      fetch(r + kAhead, r + kAhead + kRows);
      if constexpr (kAsksAhead<Format>) ahead.ask(2 * kRows);
      score_rows<Format, kHeads, kRows>(query, dim, rows.key + r, r, score);
    }
    for (; r < rows.count; ++r) score_rows<Format, kHeads, 1>(query, dim, rows.key + r, r, score);
    add_weights<kHeads>(rows, score);
  }

  template <int kHeads>
  static void add_weights(const Rows& rows, float (*score)[kFoldRows]) {
    if (!rows.weighted) return;
    for (int h = 0; h < kHeads; ++h)
      for (int r = 0; r < rows.count; ++r) score[h][r] += rows.log_weight[r];
  }

  // Floats, as rows are rebuilt to.
  struct Rebuilt {
    template <typename>
    struct Reader {
      Reader(const std::byte* row, std::uint32_t) : channels(reinterpret_cast<const float*>(row)) {}
      F load(std::uint32_t group, std::uint32_t at) const { return V::load(channels + group + at); }

      const float* channels;
    };
  };

  // Of keys that are rebuilt first, a few at a time.
  template <typename Format, int kHeads>
  static void score_rebuilt(const float* query, std::uint32_t dim, const SideFit& fit,
                            const Rows& rows, float (*score)[kFoldRows]) {
    alignas(64) float key[kRebuiltRows * kMaxHeadSize];
    for (int first = 0; first < rows.count; first += kRebuiltRows) {
      const int n = std::min(kRebuiltRows, rows.count - first);
      Format::template rebuild<V>(fit, rows.key + first, rows.number + first, n, dim, key);
      const std::byte* row[kRebuiltRows];
      for (int r = 0; r < n; ++r) row[r] = reinterpret_cast<const std::byte*>(key + r * dim);
      constexpr int kRows = kScored<kHeads>;
      int r = 0;
      for (; r + kRows <= n; r += kRows)
        score_rows<Rebuilt, kHeads, kRows>(query, dim, row + r, first + r, score);
      for (; r < n; ++r) score_rows<Rebuilt, kHeads, 1>(query, dim, row + r, first + r, score);
    }
    add_weights<kHeads>(rows, score);
  }

  // Of rotated keys, as the queries are then: products stay the same.
  template <typename Format, int kHeads>
  static void score_rotated(const float* query, std::uint32_t dim, const Rows& rows,
                            RowsAhead& ahead, float (*out)[kFoldRows]) {
    float rotated[kHeads * kMaxHeadSize];
    std::copy_n(query, kHeads * dim, rotated);
    for (int h = 0; h < kHeads; ++h) rotate<V>(rotated + h * dim, dim);
    score<Format, kHeads>(rotated, dim, rows, ahead, out);
  }

  // score[h][r] of a scored fold, from query head `first` on.
  template <int kHeads>
  static void take_scores(const Rows& rows, std::uint32_t first, float (*score)[kFoldRows]) {
    for (int r = 0; r < rows.count; ++r) {
      __builtin_prefetch(rows.value[r]);
      for (int h = 0; h < kHeads; ++h) score[h][r] = rows.scores[r][first + h];
    }
  }

  // acc[h][i..i+kVecs*L] += sum over rows of p[h][r] * value[r]
  template <typename Format, int kHeads, int kVecs>
  static void accumulate(const Rows& rows, const float (*p)[kFoldRows], std::uint32_t dim,
                         std::uint32_t first, RowsAhead& ahead, AttnState* states) {
    F acc[kHeads][kVecs];
    for (int h = 0; h < kHeads; ++h)
      for (int v = 0; v < kVecs; ++v) acc[h][v] = V::zero();
    const std::uint32_t group = first / kRowGroup * kRowGroup;
    const std::uint32_t at = kVecs * L % kRowGroup == 0 ? 0 : first % kRowGroup;
    // Their part of a row's bytes, or so: a format may keep a scale at its end.
    const std::uint32_t from = Format::bytes(dim) * first / dim;
    const std::uint32_t to = Format::bytes(dim) * (first + kVecs * L) / dim;
    for (int r = 0; r < rows.count; ++r) {
      if (r + kAhead < rows.count) fetch_row(rows.value[r + kAhead], from, to);
      if constexpr (kAsksAhead<Format>) ahead.ask(2);
      const typename Format::template Reader<V> row(rows.value[r], dim);
      F weight[kHeads];
      for (int h = 0; h < kHeads; ++h) weight[h] = V::set(p[h][r]);
      for (int v = 0; v < kVecs; ++v) {
        const F value = kGrouped<Format> ? row.load(group + v * L / kRowGroup * kRowGroup,
                                                    at + v * L % kRowGroup)
                                         : row.load(first + v * L, 0);
        for (int h = 0; h < kHeads; ++h) acc[h][v] = V::fma(weight[h], value, acc[h][v]);
      }
    }
    for (int h = 0; h < kHeads; ++h)
      for (int v = 0; v < kVecs; ++v) V::store(states[h].acc + first + v * L, acc[h][v]);
  }

  // In place: score -> e^(score - max); fills max and sum.
  static void weigh(float* score, int rows, AttnState* state) {
    if (rows < 1) __builtin_unreachable();  // said for the compiler: attend() sees to it
    const int padded = (rows + L - 1) / L * L;
    for (int r = rows; r < padded; ++r) score[r] = -std::numeric_limits<float>::infinity();
    F most = V::load(score);
    for (int r = L; r < padded; r += L) most = V::max(most, V::load(score + r));
    const float largest = V::largest(most);
    F sum = V::zero();
    for (int r = 0; r < padded; r += L) {
      const F s = V::load(score + r);
      const F e = V::keep_where_above(s, -std::numeric_limits<float>::infinity(),
                                      exp_bounded<V>(V::sub(s, V::set(largest))));
      V::store(score + r, e);
      sum = V::add(sum, e);
    }
    state->max = largest;
    state->sum = V::sum(sum);
  }

  template <typename Format, int kHeads>
  static void accumulate_all(const Rows& rows, const float (*p)[kFoldRows], std::uint32_t dim,
                             RowsAhead& ahead, AttnState* states) {
    constexpr int kVecs = kHeads <= 3 ? 4 : 2;  // sums that fit the register file
    std::uint32_t i = 0;
    for (; i + kVecs * L <= dim; i += kVecs * L)
      accumulate<Format, kHeads, kVecs>(rows, p, dim, i, ahead, states);
    for (; i < dim; i += L) accumulate<Format, kHeads, 1>(rows, p, dim, i, ahead, states);
  }

  // The same of values that are rebuilt first, a few at a time: sums wait in states.
  template <typename Format, int kHeads>
  static void accumulate_rebuilt(const SideFit& fit, const Rows& rows, const float (*p)[kFoldRows],
                                 std::uint32_t dim, AttnState* states) {
    alignas(64) float value[kRebuiltRows * kMaxHeadSize];
    for (int h = 0; h < kHeads; ++h) std::fill_n(states[h].acc, dim, 0.0f);
    for (int first = 0; first < rows.count; first += kRebuiltRows) {
      const int n = std::min(kRebuiltRows, rows.count - first);
      Format::template rebuild<V>(fit, rows.value + first, rows.number + first, n, dim, value);
      for (std::uint32_t i = 0; i < dim; i += L)
        for (int h = 0; h < kHeads; ++h) {
          F acc = V::load(states[h].acc + i);
          for (int r = 0; r < n; ++r)
            acc = V::fma(V::set(p[h][first + r]), V::load(value + r * dim + i), acc);
          V::store(states[h].acc + i, acc);
        }
    }
  }

  // Query heads [first, first + kHeads).
  template <int kHeads>
  static void attend_heads(const float* query, std::uint32_t first, HeadShape shape,
                           const Fold& fold, const Rows& rows, RowsAhead& ahead,
                           AttnState* states) {
    alignas(64) float weight[kHeads][kFoldRows];
    query += std::size_t{first} * shape.key_dim;
    states += first;
    if (fold.scored)
      take_scores<kHeads>(rows, first, weight);
    else
      visit_row(fold.key_format, [&](auto format) {
        using Format = decltype(format);
        if constexpr (kFitted<Format>)
          score_rebuilt<Format, kHeads>(query, shape.key_dim, fold.key_fit, rows, weight);
        else if constexpr (Format::kRotated)
          score_rotated<Format, kHeads>(query, shape.key_dim, rows, ahead, weight);
        else
          score<Format, kHeads>(query, shape.key_dim, rows, ahead, weight);
      });
    for (int h = 0; h < kHeads; ++h) weigh(weight[h], rows.count, &states[h]);
    visit_row(fold.value_format, [&](auto format) {
      using Format = decltype(format);
      if constexpr (kFitted<Format>)
        accumulate_rebuilt<Format, kHeads>(fold.value_fit, rows, weight, shape.value_dim, states);
      else
        accumulate_all<Format, kHeads>(rows, weight, shape.value_dim, ahead, states);
      if (Format::kRotated)
        for (int h = 0; h < kHeads; ++h) rotate<V>(states[h].acc, shape.value_dim);
    });
    if (fold.residual)
      for (int h = 0; h < kHeads; ++h) states[h].sum = 0.0f;
  }

  static void attend(const float* query, HeadShape shape, const Fold& fold, const Fold* next,
                     AttnState* states) {
    Rows rows;
    rows.list(fold, shape.heads);
    if (rows.count == 0) {
      for (std::uint32_t h = 0; h < shape.heads; ++h) {
        states[h].max = -std::numeric_limits<float>::infinity();
        states[h].sum = 0.0f;
        for (std::uint32_t i = 0; i < shape.value_dim; ++i) states[h].acc[i] = 0.0f;
      }
      return;
    }
    RowsAhead ahead(next, shape);
    std::uint32_t h = 0;
    for (; h + 4 <= shape.heads; h += 4)
      attend_heads<4>(query, h, shape, fold, rows, ahead, states);
    switch (shape.heads - h) {
      case 3:
        attend_heads<3>(query, h, shape, fold, rows, ahead, states);
        break;
      case 2:
        attend_heads<2>(query, h, shape, fold, rows, ahead, states);
        break;
      case 1:
        attend_heads<1>(query, h, shape, fold, rows, ahead, states);
        break;
      default:
        break;
    }
  }

  static void merge(const AttnState& from, std::uint32_t value_dim, AttnState* into) {
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    if (from.max == kNone) return;
    const float max = from.max > into->max ? from.max : into->max;
    const float keep = into->max == kNone ? 0.0f : std::exp(into->max - max);
    const float take = std::exp(from.max - max);
    into->max = max;
    into->sum = into->sum * keep + from.sum * take;
    const F a = V::set(keep), b = V::set(take);
    for (std::uint32_t i = 0; i < value_dim; i += L)
      V::store(into->acc + i, V::fma(V::load(from.acc + i), b, V::mul(V::load(into->acc + i), a)));
  }
};

template <typename V>
constexpr AttendOps make_attend() {
  return {&Attend<V>::attend, &Attend<V>::merge, AttendTile<V>::Terms::kType,
          &AttendTile<V>::attend};
}

}  // namespace
}  // namespace thermocline
