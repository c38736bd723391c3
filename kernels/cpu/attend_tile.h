// A fold for a tile of queries: two matrix products with a softmax between them. Lanes are queries,
// so neither softmax nor the products need a sum across lanes.
//
// A panel of kPanel queries is taken through the whole fold at a time: its packed queries (8 KiB),
// its scores (32 KiB) and what of the fold it meets next stay in the first two caches.
#pragma once

#include "kernels/attend.h"
#include "kernels/cpu/fold_rows.h"
#include "kernels/cpu/hadamard.h"
#include "kernels/cpu/vec.h"
#include "kernels/format/visit_row.h"

namespace thermocline {
namespace {

// What the products are made of. A step of a product multiplies kTerms values of the inner
// dimension in each lane; an operand that has lanes is packed [steps][lanes][kTerms].
template <typename V>
struct FloatTerms {
  using F = typename V::F;
  using T = float;
  using Packed = F;
  static constexpr GemmType kType = GemmType::f32;
  static constexpr int kTerms = 1;
  static Packed load(const T* p) { return V::load(p); }
  static Packed same(const T* p) { return V::set(*p); }  // in all lanes
  static F multiply(Packed a, Packed b, F sum) { return V::fma(a, b, sum); }
  static void pack(T* out, const F* terms) { V::store(out, terms[0]); }
  static void store_row(T* out, F values) { V::store(out, values); }
  static F weight(F score, F base) { return exp_bounded<V>(V::sub(score, base)); }
};

// Pairs of bf16: two products an instruction, of operands rounded to 8 bits. Sums stay float32, and
// so do scores and the softmax.
template <typename V>
struct PairTerms {
  using F = typename V::F;
  using T = bf16;
  using Packed = typename V::P;
  static constexpr GemmType kType = GemmType::bf16;
  static constexpr int kTerms = 2;
  static Packed load(const T* p) { return V::load_pairs(p); }
  static Packed same(const T* p) { return V::same_pair(p); }
  static F multiply(Packed a, Packed b, F sum) { return V::add_pairs(a, b, sum); }
  static void pack(T* out, const F* terms) { V::store_pairs(out, terms[0], terms[1]); }
  static void store_row(T* out, F values) { V::store(out, values); }
  static F weight(F score, F base) { return V::exp_coarse(V::sub(score, base)); }
};

template <typename V>
struct TermsOf {
  using Type = FloatTerms<V>;
};
template <typename V>
requires requires { typename V::P; }
struct TermsOf<V> {
  using Type = PairTerms<V>;
};

template <typename V>
struct AttendTile {
  using F = typename V::F;
  using Terms = typename TermsOf<V>::Type;
  using T = typename Terms::T;
  static constexpr int L = V::lanes;
  static constexpr int kTerms = Terms::kTerms;
  static constexpr int kPanel = L == 16 ? 32 : 16;
  static constexpr int kWide = kPanel / L;
  // Rows of a product whose sums fit the register file beside a step's operands.
  static constexpr int kRows = L == 16 ? 8 : L == 8 ? 6 : 2;
  static constexpr float kNone = -std::numeric_limits<float>::infinity();
  static_assert(kTileLanes % kPanel == 0);

  // A fold ready to be multiplied, and a panel's scores. All of it is scratch.
  struct Work {
    T* keys;       // [rows][key_dim]
    T* values;     // [rows / kTerms][value_dim][kTerms]
    T* query;      // [key_dim / kTerms][kPanel][kTerms]
    float* score;  // [rows][kPanel]; then weights, packed, in place

    Work(HeadShape shape, float* scratch) {
      const auto take = [&](std::size_t floats) {
        return std::exchange(scratch, scratch + floats);
      };
      keys = reinterpret_cast<T*>(take(std::size_t{kFoldRows} * shape.key_dim));
      values = reinterpret_cast<T*>(take(std::size_t{kFoldRows} * shape.value_dim));
      query = reinterpret_cast<T*>(take(std::size_t{kPanel} * shape.key_dim));
      score = take(std::size_t{kFoldRows} * kPanel);
    }
  };

  // A row as it was before any rotation.
  template <typename Format, bool kRotated = Format::kRotated>
  struct PlainRow : Format::template Reader<V> {
    using Format::template Reader<V>::Reader;
  };
  template <typename Format>
  struct PlainRow<Format, true> {
    PlainRow(const std::byte* coded, std::uint32_t dim) {
      const typename Format::template Reader<V> rotated(coded, dim);
      for (std::uint32_t i = 0; i < dim; i += L)
        V::store(row + i, rotated.load(i / kRowGroup * kRowGroup, i % kRowGroup));
      rotate<V>(row, dim);
    }
    F load(std::uint32_t group, std::uint32_t at) const { return V::load(row + group + at); }

    alignas(64) float row[kMaxHeadSize];
  };

  // Calls with_row(rank, row) for each row of a side, rebuilt.
  template <typename Format, typename WithRow>
  static void for_rebuilt(const SideFit& fit, const std::byte* const* coded, const FoldRows& rows,
                          std::uint32_t dim, const WithRow& with_row) {
    alignas(64) float row[kRebuiltRows * kMaxHeadSize];
    for (int first = 0; first < rows.count; first += kRebuiltRows) {
      const int n = std::min(kRebuiltRows, rows.count - first);
      Format::template rebuild<V>(fit, coded + first, rows.number + first, n, dim, row);
      for (int r = 0; r < n; ++r) with_row(first + r, row + r * dim);
    }
  }

  static void read_keys(const Fold& fold, const FoldRows& rows, std::uint32_t dim, T* out) {
    visit_row(fold.key_format, [&](auto coded) {
      using Format = decltype(coded);
      if constexpr (kFitted<Format>) {
        for_rebuilt<Format>(fold.key_fit, rows.key, rows, dim, [&](int r, const float* key) {
          for (std::uint32_t i = 0; i < dim; i += L)
            Terms::store_row(out + std::size_t(r) * dim + i, V::load(key + i));
        });
      } else {
        for (int r = 0; r < rows.count; ++r) {
          const PlainRow<Format> row(rows.key[r], dim);
          for (std::uint32_t i = 0; i < dim; i += L)
            Terms::store_row(out + std::size_t(r) * dim + i,
                             row.load(i / kRowGroup * kRowGroup, i % kRowGroup));
        }
      }
    });
  }

  // Rows after the last are zeros, up to a whole step.
  static void read_values(const Fold& fold, const FoldRows& rows, std::uint32_t dim, T* out) {
    visit_row(fold.value_format, [&](auto coded) {
      using Format = decltype(coded);
      if constexpr (kFitted<Format>) {
        read_rebuilt_values<Format>(fold.value_fit, rows, dim, out);
        return;
      } else {
        using Row = PlainRow<Format>;
        for (int r = 0; r < rows.count; r += kTerms) {
          const auto row = [&](int t) {
            return Row(rows.value[std::min(r + t, rows.count - 1)], dim);
          };
          const Row each[2] = {row(0), row(kTerms - 1)};
          static_assert(kTerms <= 2);
          for (std::uint32_t i = 0; i < dim; i += L) {
            F terms[kTerms];
            for (int t = 0; t < kTerms; ++t)
              terms[t] = r + t < rows.count ? each[t].load(i / kRowGroup * kRowGroup, i % kRowGroup)
                                            : V::zero();
            Terms::pack(out + std::size_t(r) * dim + i * kTerms, terms);
          }
        }
      }
    });
  }

  template <typename Format>
  static void read_rebuilt_values(const SideFit& fit, const FoldRows& rows, std::uint32_t dim,
                                  T* out) {
    const float* before = nullptr;  // the first row of a step that has two
    for_rebuilt<Format>(fit, rows.value, rows, dim, [&](int r, const float* value) {
      const bool last = r + 1 == rows.count;
      if (kTerms == 2 && r % 2 == 0 && !last) {
        before = value;
        return;
      }
      const int first = r / kTerms * kTerms;
      for (std::uint32_t i = 0; i < dim; i += L) {
        F terms[kTerms];
        terms[0] = V::load((first < r ? before : value) + i);
        if constexpr (kTerms == 2) terms[1] = first < r ? V::load(value + i) : V::zero();
        Terms::pack(out + std::size_t(first) * dim + i * kTerms, terms);
      }
    });
  }

  static void read_query(const QueryTile& tile, std::size_t first, std::uint32_t dim, T* out) {
    const float* from = tile.query + first;
    for (std::uint32_t i = 0; i < dim; i += kTerms)
      for (int w = 0; w < kWide; ++w) {
        F terms[kTerms];
        for (int t = 0; t < kTerms; ++t)
          terms[t] = V::load(from + (i + static_cast<std::uint32_t>(t)) * tile.rows + w * L);
        Terms::pack(out + std::size_t{i} * kPanel + w * L * kTerms, terms);
      }
  }

  // sum[r][lane] += a row r . b lane, for kSums rows of a: its steps lie `a_step` apart, its rows
  // `a_row`.
  template <int kSums>
  static void multiply(const T* a, std::size_t a_row, std::size_t a_step, const T* b, int steps,
                       F (&sum)[kSums][kWide]) {
    for (int s = 0; s < steps; ++s, a += a_step, b += kPanel * kTerms) {
      typename Terms::Packed lane[kWide];
      // Unrolled by force: only then are sums and lanes registers.
#pragma GCC unroll 16
      for (int w = 0; w < kWide; ++w) lane[w] = Terms::load(b + w * L * kTerms);
#pragma GCC unroll 8
      for (int r = 0; r < kSums; ++r) {
        const typename Terms::Packed x = Terms::same(a + static_cast<std::size_t>(r) * a_row);
#pragma GCC unroll 16
        for (int w = 0; w < kWide; ++w) sum[r][w] = Terms::multiply(x, lane[w], sum[r][w]);
      }
    }
  }

  // Not inlined, nor is add_values: among the values of a whole tile, sums do not stay in
  // registers.
  template <int kSums>
  [[gnu::noinline]] static void score_rows(const Work& work, std::uint32_t dim, int first) {
    F sum[kSums][kWide];
    for (int r = 0; r < kSums; ++r)
      for (int w = 0; w < kWide; ++w) sum[r][w] = V::zero();
    multiply<kSums>(work.keys + std::size_t(first) * dim, dim, kTerms, work.query,
                    static_cast<int>(dim) / kTerms, sum);
    for (int r = 0; r < kSums; ++r)
      for (int w = 0; w < kWide; ++w)
        V::store(work.score + (first + r) * kPanel + w * L, sum[r][w]);
  }

  // acc[j][lane] = acc[j][lane] * keep[lane] + sum over n rows of value[row][j] *
  // weight[row][lane], for kSums channels from `first` on.
  template <int kSums>
  [[gnu::noinline]] static void add_values(const Work& work, std::uint32_t dim, std::uint32_t first,
                                           int n, const F (&keep)[kWide], float* acc,
                                           std::size_t stride) {
    F sum[kSums][kWide];
    for (int j = 0; j < kSums; ++j)
      for (int w = 0; w < kWide; ++w)
        sum[j][w] = V::mul(V::load(acc + (first + j) * stride + w * L), keep[w]);
    multiply<kSums>(work.values + std::size_t{first} * kTerms, kTerms, std::size_t{dim} * kTerms,
                    reinterpret_cast<const T*>(work.score), (n + kTerms - 1) / kTerms, sum);
    for (int j = 0; j < kSums; ++j)
      for (int w = 0; w < kWide; ++w) V::store(acc + (first + j) * stride + w * L, sum[j][w]);
  }

  // The panel's scores of n rows become weights, packed. Updates the tile's max and sum from lane
  // `first` on; keep: what the sums so far are to be multiplied by.
  static void weigh(const QueryTile& tile, std::size_t first, int n, float* score,
                    F (&keep)[kWide]) {
    for (int w = 0; w < kWide; ++w) {
      const F before = V::load(tile.max + first + w * L);
      F most[2] = {before, before};  // two, so that the next need not wait for this
      int r = 0;
      for (; r + 2 <= n; r += 2)
        for (int i = 0; i < 2; ++i)
          most[i] = V::max(most[i], V::load(score + (r + i) * kPanel + w * L));
      for (; r < n; ++r) most[0] = V::max(most[0], V::load(score + r * kPanel + w * L));
      const F max = V::max(most[0], most[1]);
      // A query that has seen nothing yet has max -inf: subtract a finite base instead.
      const F base = V::max(max, V::set(-1e30f));
      keep[w] = exp_bounded<V>(V::sub(before, base));
      F sum = V::mul(V::load(tile.sum + first + w * L), keep[w]);
      for (r = 0; r < n; r += kTerms) {
        F terms[kTerms];
        for (int t = 0; t < kTerms; ++t) {
          terms[t] = V::zero();
          if (r + t >= n) break;
          const F s = V::load(score + (r + t) * kPanel + w * L);
          terms[t] = V::keep_where_above(s, kNone, Terms::weight(s, base));
          sum = V::add(sum, terms[t]);
        }
        // The packed weights of a step take the place of scores that all lanes have read.
        Terms::pack(reinterpret_cast<T*>(score + r / kTerms * kPanel + w * L), terms);
      }
      V::store(tile.max + first + w * L, max);
      V::store(tile.sum + first + w * L, sum);
    }
  }

  static void mask(const std::uint32_t* position, const Visibility& visible, int n, float* score) {
    for (int q = 0; q < kPanel; ++q) {
      const std::int64_t at = position[q];
      const std::int64_t start = visible.first_position;
      const std::int64_t seen_end = at - start + 1;  // first rank that is not yet visible
      const std::int64_t seen_first = visible.window == 0 ? 0 : at - visible.window + 1 - start;
      for (std::int64_t r = 0; r < std::min<std::int64_t>(seen_first, n); ++r)
        score[r * kPanel + q] = kNone;
      for (std::int64_t r = std::max<std::int64_t>(seen_end, 0); r < n; ++r)
        score[r * kPanel + q] = kNone;
    }
  }

  // Of `count` rows: those that come before the panel's last query. The others are seen by none.
  static int rows_seen(const std::uint32_t* position, const Visibility& visible, int count) {
    if (!visible.masked) return count;
    const std::uint32_t last = *std::max_element(position, position + kPanel);
    if (last < visible.first_position) return 0;
    return static_cast<int>(std::min<std::uint32_t>(last - visible.first_position + 1,
                                                    static_cast<std::uint32_t>(count)));
  }

  static void attend(const QueryTile& tile, HeadShape shape, const Fold& fold,
                     const Visibility& visible, float* scratch) {
    FoldRows rows;
    rows.list(fold, shape.heads);
    if (rows.count == 0) return;
    const Work work(shape, scratch);
    read_keys(fold, rows, shape.key_dim, work.keys);
    read_values(fold, rows, shape.value_dim, work.values);

    for (std::size_t first = 0; first < tile.rows; first += kPanel) {
      const int n = rows_seen(tile.position + first, visible, rows.count);
      if (n == 0) continue;
      read_query(tile, first, shape.key_dim, work.query);
      int r = 0;
      for (; r + kRows <= n; r += kRows) score_rows<kRows>(work, shape.key_dim, r);
      for (; r < n; ++r) score_rows<1>(work, shape.key_dim, r);
      if (rows.weighted)
        for (r = 0; r < n; ++r)
          for (int q = 0; q < kPanel; ++q) work.score[r * kPanel + q] += rows.log_weight[r];
      if (visible.masked) mask(tile.position + first, visible, n, work.score);

      F keep[kWide];
      weigh(tile, first, n, work.score, keep);
      float* acc = tile.acc + first;
      std::uint32_t j = 0;
      for (; j + kRows <= shape.value_dim; j += kRows)
        add_values<kRows>(work, shape.value_dim, j, n, keep, acc, tile.rows);
      for (; j < shape.value_dim; ++j)
        add_values<1>(work, shape.value_dim, j, n, keep, acc, tile.rows);
    }
  }
};

}  // namespace
}  // namespace thermocline
