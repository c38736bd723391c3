// AttendOps over a Vec. Decode walks rows and keeps lanes along the head size; prefill keeps lanes
// along the queries of a tile, so neither softmax nor the products need a sum across lanes. How
// rows are coded is asked once for each side of a fold.
#pragma once

#include "kernels/attend.h"
#include "kernels/cpu/vec.h"
#include "kernels/format/visit_row.h"

namespace thermocline {
namespace {

template <typename V>
struct Attend {
  using F = typename V::F;
  static constexpr int L = V::lanes;

  // The rows of a fold by rank: address of each row's key and value, and its log weight.
  struct Rows {
    int count = 0;
    const std::byte* key[kFoldRows];
    const std::byte* value[kFoldRows];
    float log_weight[kFoldRows];
    const float* scores[kFoldRows];  // of the query heads; only in a scored fold
  };

  static void list_rows(const Fold& fold, std::uint32_t heads, Rows* rows) {
    int n = 0;
    for (const BlockView& block : fold.blocks) {
      const int before = n;
      for (RowSet left = block.rows; left != 0;) {  // a stretch of neighbours at a time
        const int first = std::countr_zero(left);
        const int stretch = std::countr_one(left >> first);
        const std::byte* key = block.key + static_cast<std::size_t>(first) * fold.key_stride;
        const std::byte* value = block.value + static_cast<std::size_t>(first) * fold.value_stride;
        for (int i = 0; i < stretch; ++i, ++n) {
          rows->key[n] = key;
          rows->value[n] = value;
          key += fold.key_stride;
          value += fold.value_stride;
        }
        left &= ~(first_rows(stretch) << first);
      }
      if (fold.scored)
        for (int r = before; r < n; ++r)
          rows->scores[r] = block.log_weight + static_cast<std::size_t>(r - before) * heads;
      else if (block.log_weight)
        std::copy_n(block.log_weight, n - before, rows->log_weight + before);
      else
        std::fill(rows->log_weight + before, rows->log_weight + n, 0.0f);
    }
    rows->count = n;
  }

  // score[h][r] for rows [first, first + kRows) and kHeads query heads: a key is converted once for
  // all heads, a query loaded once for all rows.
  template <typename Format, int kHeads, int kRows>
  static void score_rows(const float* query, std::uint32_t dim, const Rows& rows, int first,
                         float (*score)[kFoldRows]) {
    using Reader = typename Format::template Reader<V>;
    const auto key = [&](int r) { return Reader(rows.key[first + (r < kRows ? r : 0)], dim); };
    const Reader keys[3] = {key(0), key(1), key(2)};
    F sum[kRows][kHeads];
    for (int r = 0; r < kRows; ++r)
      for (int h = 0; h < kHeads; ++h) sum[r][h] = V::zero();
    for (std::uint32_t i = 0; i < dim; i += L) {
      F k[kRows];
      for (int r = 0; r < kRows; ++r) k[r] = keys[r].load(i);
      for (int h = 0; h < kHeads; ++h) {
        const F q = V::load(query + h * dim + i);
        for (int r = 0; r < kRows; ++r) sum[r][h] = V::fma(k[r], q, sum[r][h]);
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int h = 0; h < kHeads; ++h)
        score[h][first + r] = V::sum(sum[r][h]) + rows.log_weight[first + r];
  }

  template <typename Format, int kHeads>
  static void score(const float* query, std::uint32_t dim, const Rows& rows,
                    float (*score)[kFoldRows]) {
    constexpr int kRows = kHeads <= 3 ? 3 : 2;  // sums that fit the register file
    constexpr int kAhead = 9;                   // rows: covers the latency of a scattered row
    const std::uint32_t bytes = Format::bytes(dim);
    // Inlined by force: the compiler takes a function that only prefetches for one without effect.
    const auto fetch = [&](int first, int end) __attribute__((always_inline)) {
      for (int r = first; r < std::min(end, rows.count); ++r)
        for (std::uint32_t i = 0; i < bytes; i += 64) {  // the values' turn comes right after
          __builtin_prefetch(rows.key[r] + i);
          __builtin_prefetch(rows.value[r] + i);
        }
    };
    fetch(0, kAhead);
    int r = 0;
    for (; r + kRows <= rows.count; r += kRows) {
      fetch(r + kAhead, r + kAhead + kRows);
      score_rows<Format, kHeads, kRows>(query, dim, rows, r, score);
    }
    for (; r < rows.count; ++r) score_rows<Format, kHeads, 1>(query, dim, rows, r, score);
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
                         std::uint32_t first, AttnState* states) {
    F acc[kHeads][kVecs];
    for (int h = 0; h < kHeads; ++h)
      for (int v = 0; v < kVecs; ++v) acc[h][v] = V::zero();
    for (int r = 0; r < rows.count; ++r) {
      const typename Format::template Reader<V> row(rows.value[r], dim);
      F weight[kHeads];
      for (int h = 0; h < kHeads; ++h) weight[h] = V::set(p[h][r]);
      for (int v = 0; v < kVecs; ++v) {
        const F value = row.load(first + v * L);
        for (int h = 0; h < kHeads; ++h) acc[h][v] = V::fma(weight[h], value, acc[h][v]);
      }
    }
    for (int h = 0; h < kHeads; ++h)
      for (int v = 0; v < kVecs; ++v) V::store(states[h].acc + first + v * L, acc[h][v]);
  }

  // In place: score -> e^(score - max); fills max and sum.
  static void weigh(float* score, int rows, AttnState* state) {
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
                             AttnState* states) {
    constexpr int kVecs = kHeads <= 3 ? 4 : 2;  // sums that fit the register file
    std::uint32_t i = 0;
    for (; i + kVecs * L <= dim; i += kVecs * L)
      accumulate<Format, kHeads, kVecs>(rows, p, dim, i, states);
    for (; i < dim; i += L) accumulate<Format, kHeads, 1>(rows, p, dim, i, states);
  }

  // Query heads [first, first + kHeads).
  template <int kHeads>
  static void attend_heads(const float* query, std::uint32_t first, HeadShape shape,
                           const Fold& fold, const Rows& rows, AttnState* states) {
    alignas(64) float weight[kHeads][kFoldRows];
    query += std::size_t{first} * shape.key_dim;
    states += first;
    if (fold.scored)
      take_scores<kHeads>(rows, first, weight);
    else
      visit_row(fold.key_format, [&](auto format) {
        score<decltype(format), kHeads>(query, shape.key_dim, rows, weight);
      });
    for (int h = 0; h < kHeads; ++h) weigh(weight[h], rows.count, &states[h]);
    visit_row(fold.value_format, [&](auto format) {
      accumulate_all<decltype(format), kHeads>(rows, weight, shape.value_dim, states);
    });
  }

  static void attend(const float* query, HeadShape shape, const Fold& fold, AttnState* states) {
    Rows rows;
    list_rows(fold, shape.heads, &rows);
    if (rows.count == 0) {
      for (std::uint32_t h = 0; h < shape.heads; ++h) {
        states[h].max = -std::numeric_limits<float>::infinity();
        states[h].sum = 0.0f;
        for (std::uint32_t i = 0; i < shape.value_dim; ++i) states[h].acc[i] = 0.0f;
      }
      return;
    }
    std::uint32_t h = 0;
    for (; h + 4 <= shape.heads; h += 4) attend_heads<4>(query, h, shape, fold, rows, states);
    switch (shape.heads - h) {
      case 3:
        attend_heads<3>(query, h, shape, fold, rows, states);
        break;
      case 2:
        attend_heads<2>(query, h, shape, fold, rows, states);
        break;
      case 1:
        attend_heads<1>(query, h, shape, fold, rows, states);
        break;
      default:
        break;
    }
  }

  static void merge(const AttnState& from, std::uint32_t value_dim, AttnState* into) {
    if (from.sum == 0.0f) return;
    const float max = from.max > into->max ? from.max : into->max;
    const float keep = into->sum == 0.0f ? 0.0f : std::exp(into->max - max);
    const float take = std::exp(from.max - max);
    into->max = max;
    into->sum = into->sum * keep + from.sum * take;
    const F a = V::set(keep), b = V::set(take);
    for (std::uint32_t i = 0; i < value_dim; i += L)
      V::store(into->acc + i, V::fma(V::load(from.acc + i), b, V::mul(V::load(into->acc + i), a)));
  }

  // Lanes of a panel: kTileLanes queries are `kWide` vectors.
  static constexpr int kWide = kTileLanes / L;
  static_assert(kTileLanes % L == 0);

  static void to_floats(RowFormat format, const std::byte* const* rows, int n, std::uint32_t dim,
                        float* out) {
    visit_row(format, [&](auto coded) {
      for (int r = 0; r < n; ++r) {
        const typename decltype(coded)::template Reader<V> row(rows[r], dim);
        for (std::uint32_t i = 0; i < dim; i += L)
          V::store(out + std::size_t(r) * dim + i, row.load(i));
      }
    });
  }

  // out[r][lane] = sum_i a[r][i] * b[i][lane] for kRows rows; b has `stride` floats between i.
  template <int kRows>
  static void panel(const float* a, std::size_t a_stride, const float* b, std::size_t b_stride,
                    std::uint32_t inner, float* out, std::size_t out_stride) {
    F acc[kRows][kWide];
    for (int r = 0; r < kRows; ++r)
      for (int w = 0; w < kWide; ++w) acc[r][w] = V::zero();
    for (std::uint32_t i = 0; i < inner; ++i) {
      F lane[kWide];
      for (int w = 0; w < kWide; ++w) lane[w] = V::load(b + i * b_stride + w * L);
      for (int r = 0; r < kRows; ++r) {
        const F x = V::set(a[r * a_stride + i]);
        for (int w = 0; w < kWide; ++w) acc[r][w] = V::fma(x, lane[w], acc[r][w]);
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int w = 0; w < kWide; ++w) V::store(out + r * out_stride + w * L, acc[r][w]);
  }

  // out[j][lane] += sum_r a[r][j] * p[r][lane] for kCols columns j of a row-major a.
  template <int kCols>
  static void panel_transposed(const float* a, std::size_t a_stride, const float* p, int rows,
                               float* out, std::size_t out_stride) {
    F acc[kCols][kWide];
    for (int j = 0; j < kCols; ++j)
      for (int w = 0; w < kWide; ++w) acc[j][w] = V::load(out + j * out_stride + w * L);
    for (int r = 0; r < rows; ++r) {
      F lane[kWide];
      for (int w = 0; w < kWide; ++w) lane[w] = V::load(p + r * kTileLanes + w * L);
      for (int j = 0; j < kCols; ++j) {
        const F x = V::set(a[r * a_stride + j]);
        for (int w = 0; w < kWide; ++w) acc[j][w] = V::fma(x, lane[w], acc[j][w]);
      }
    }
    for (int j = 0; j < kCols; ++j)
      for (int w = 0; w < kWide; ++w) V::store(out + j * out_stride + w * L, acc[j][w]);
  }

  static void attend_tile(const QueryTile& tile, HeadShape shape, const Fold& fold,
                          const Visibility& visible, float* scratch) {
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    constexpr int kRows = kWide >= 4 ? 2 : 6;  // accumulators that fit the register file
    Rows rows;
    list_rows(fold, shape.heads, &rows);
    if (rows.count == 0) return;
    float* keys = scratch;
    float* values = keys + std::size_t{kFoldRows} * shape.key_dim;
    float* score = values + std::size_t{kFoldRows} * shape.value_dim;
    to_floats(fold.key_format, rows.key, rows.count, shape.key_dim, keys);
    to_floats(fold.value_format, rows.value, rows.count, shape.value_dim, values);

    for (std::size_t first = 0; first < tile.rows; first += kTileLanes) {
      int n = rows.count;
      if (visible.masked) {  // rows after the panel's last query are seen by none of it
        std::uint32_t last = 0;
        for (int q = 0; q < kTileLanes; ++q) last = std::max(last, tile.position[first + q]);
        if (last < visible.first_position) continue;
        const std::uint32_t seen = last - visible.first_position + 1;
        if (seen < static_cast<std::uint32_t>(n)) n = static_cast<int>(seen);
      }
      const float* query = tile.query + first;
      int r = 0;
      for (; r + kRows <= n; r += kRows)
        panel<kRows>(keys + std::size_t(r) * shape.key_dim, shape.key_dim, query, tile.rows,
                     shape.key_dim, score + r * kTileLanes, kTileLanes);
      for (; r < n; ++r)
        panel<1>(keys + std::size_t(r) * shape.key_dim, shape.key_dim, query, tile.rows,
                 shape.key_dim, score + r * kTileLanes, kTileLanes);
      for (r = 0; r < n; ++r)
        if (rows.log_weight[r] != 0.0f)
          for (int q = 0; q < kTileLanes; ++q) score[r * kTileLanes + q] += rows.log_weight[r];
      if (visible.masked) mask(tile.position + first, visible, n, score);

      F max[kWide], sum[kWide], keep[kWide], base[kWide];
      for (int w = 0; w < kWide; ++w) {
        const F before = V::load(tile.max + first + w * L);
        max[w] = before;
        for (r = 0; r < n; ++r) max[w] = V::max(max[w], V::load(score + r * kTileLanes + w * L));
        // A query that has seen nothing yet has max -inf: subtract a finite base instead.
        base[w] = V::max(max[w], V::set(-1e30f));
        keep[w] = exp_bounded<V>(V::sub(before, base[w]));
        sum[w] = V::mul(V::load(tile.sum + first + w * L), keep[w]);
      }
      for (r = 0; r < n; ++r)
        for (int w = 0; w < kWide; ++w) {
          float* at = score + r * kTileLanes + w * L;
          const F s = V::load(at);
          const F e = V::keep_where_above(s, kNone, exp_bounded<V>(V::sub(s, base[w])));
          V::store(at, e);
          sum[w] = V::add(sum[w], e);
        }
      for (int w = 0; w < kWide; ++w) {
        V::store(tile.max + first + w * L, max[w]);
        V::store(tile.sum + first + w * L, sum[w]);
      }
      float* acc = tile.acc + first;
      for (std::uint32_t j = 0; j < shape.value_dim; ++j)
        for (int w = 0; w < kWide; ++w) {
          float* at = acc + j * tile.rows + w * L;
          V::store(at, V::mul(V::load(at), keep[w]));
        }
      std::uint32_t j = 0;
      for (; j + kRows <= shape.value_dim; j += kRows)
        panel_transposed<kRows>(values + j, shape.value_dim, score, n, acc + j * tile.rows,
                                tile.rows);
      for (; j < shape.value_dim; ++j)
        panel_transposed<1>(values + j, shape.value_dim, score, n, acc + j * tile.rows, tile.rows);
    }
  }

  static void mask(const std::uint32_t* position, const Visibility& visible, int n, float* score) {
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    for (int q = 0; q < kTileLanes; ++q) {
      const std::int64_t at = position[q];
      const std::int64_t start = visible.first_position;
      const std::int64_t seen_end = at - start + 1;  // first rank that is not yet visible
      const std::int64_t seen_first = visible.window == 0 ? 0 : at - visible.window + 1 - start;
      for (std::int64_t r = 0; r < std::min<std::int64_t>(seen_first, n); ++r)
        score[r * kTileLanes + q] = kNone;
      for (std::int64_t r = std::max<std::int64_t>(seen_end, 0); r < n; ++r)
        score[r * kTileLanes + q] = kNone;
    }
  }
};

template <typename V>
constexpr AttendOps make_attend() {
  return {&Attend<V>::attend, &Attend<V>::merge, &Attend<V>::attend_tile};
}

}  // namespace
}  // namespace thermocline
