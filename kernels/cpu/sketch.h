// SketchOps over a Vec. Lanes are rows: a word of codes gives four channels of as many rows as
// there are lanes, which one instruction multiplies by four of the query's channels. The unpacked
// codes are shared by the query heads.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels/cpu/vec.h"
#include "kernels/format/visit_row.h"
#include "kernels/sketch.h"

namespace thermocline {
namespace {

template <typename V>
struct Sketch {
  using F = typename V::F;
  using I = typename V::I;
  using B = typename V::B;
  static constexpr int L = V::lanes;
  static constexpr int kParts = kSketchGroup / L;  // registers a group's rows take
  static constexpr std::size_t kWordBytes = 4 * kSketchGroup;
  // Words of codes before 16-bit sums may overflow: 32 terms a half lane of at most 762.
  static constexpr std::size_t kWordsAtOnce = 8;
  static constexpr float kNone = -std::numeric_limits<float>::infinity();
  alignas(64) static constexpr float kRank[kSketchGroup] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                            8, 9, 10, 11, 12, 13, 14, 15};

  // The integer dot products of one group with `heads` queries.
  template <int heads>
  static void group_dots(const std::uint8_t* group, std::size_t words, const SketchQuery* queries,
                         I (&total)[heads][kParts]) {
    for (int h = 0; h < heads; ++h)
      for (int p = 0; p < kParts; ++p) total[h][p] = V::izero();
    for (std::size_t from = 0; from < words; from += kWordsAtOnce) {
      const std::size_t to = from + kWordsAtOnce < words ? from + kWordsAtOnce : words;
      I sums[heads][kParts];
      for (int h = 0; h < heads; ++h)
        for (int p = 0; p < kParts; ++p) sums[h][p] = V::izero();
      for (std::size_t w = from; w < to; ++w) {
        B word[kParts];
        for (int p = 0; p < kParts; ++p)
          word[p] = V::load_bytes(group + w * kWordBytes + std::size_t(p) * 4 * L);
          // Not unrolled: the compiler would turn the sums into a tree and spill its leaves.
#pragma GCC unroll 1
        for (std::size_t channel = 16 * w; channel < 16 * (w + 1); channel += 4) {
          B codes[kParts];
          for (int p = 0; p < kParts; ++p) {
            codes[p] = V::crumbs(word[p]);
            word[p] = V::next_crumbs(word[p]);
          }
          for (int h = 0; h < heads; ++h) {
            const B quad = V::quad(queries[h].code + channel);
            for (int p = 0; p < kParts; ++p) sums[h][p] = V::dot4(sums[h][p], codes[p], quad);
          }
        }
      }
      for (int h = 0; h < heads; ++h)
        for (int p = 0; p < kParts; ++p)
          total[h][p] = V::add32(total[h][p], V::dot4_total(sums[h][p]));
    }
  }

  // What the scores of the 16 rows from `row` on start from: those of their clusters, less the
  // shift. *cluster is at or before that of `row`, and moves up to that of row `end` - 1.
  template <int heads>
  static void cluster_scores(const SketchScan& scan, int head, std::size_t row, std::size_t end,
                             std::size_t* cluster, F (&score)[heads][kParts]) {
    while (scan.starts[*cluster + 1] <= row) ++*cluster;
    const auto of_cluster = [&](int h) {
      const std::size_t at = std::size_t(head + h) * scan.cluster_stride + *cluster;
      return V::set(scan.cluster_score[at] - scan.shift[head + h]);
    };
    for (int h = 0; h < heads; ++h) {
      const F all = of_cluster(h);
      for (int p = 0; p < kParts; ++p) score[h][p] = all;
    }
    while (scan.starts[*cluster + 1] < end) {
      ++*cluster;
      const F begin = V::set(static_cast<float>(scan.starts[*cluster] - row));
      F before[kParts];  // negative in the lanes of rows that come before the cluster
      for (int p = 0; p < kParts; ++p) before[p] = V::sub(V::load(kRank + p * L), begin);
      for (int h = 0; h < heads; ++h) {
        const F here = of_cluster(h);
        for (int p = 0; p < kParts; ++p)
          score[h][p] = V::where_negative(before[p], score[h][p], here);
      }
    }
  }

  template <int heads>
  static void weigh_heads(const SketchScan& scan, int head, std::size_t first, std::size_t count,
                          std::size_t cluster, float* weight, std::size_t stride, float* sum) {
    const std::size_t words = scan.key_dim / 16, group_bytes = words * kWordBytes;
    const SketchQuery* queries = scan.queries + head;
    weight += std::size_t(head) * stride;
    F scale[heads], middle[heads], total[heads];
    for (int h = 0; h < heads; ++h) {
      scale[h] = V::set(queries[h].scale);
      middle[h] = V::set(kSketchOffset * static_cast<float>(queries[h].sum));
      total[h] = V::zero();
    }
    const std::size_t end = first + count;
    for (std::size_t row = first; row < end; row += kSketchGroup) {
      const std::size_t group_end = row + kSketchGroup < end ? row + kSketchGroup : end;
      const std::uint8_t* codes = scan.codes + row / kSketchGroup * group_bytes;
      F score[heads][kParts];
      cluster_scores<heads>(scan, head, row, group_end, &cluster, score);
      I dots[heads][kParts];
      group_dots<heads>(codes, words, queries, dots);
      for (int p = 0; p < kParts; ++p) {
        const F row_scale = V::load(scan.scales + row + std::size_t(p) * L);
        const F past = V::sub(V::load(kRank + p * L), V::set(static_cast<float>(group_end - row)));
        for (int h = 0; h < heads; ++h) {
          const F dot = V::mul(V::sub(V::to_float(dots[h][p]), middle[h]), scale[h]);
          // Not a number: weight 0.
          const F s = V::min(V::set(kSketchMostAbove), V::fma(dot, row_scale, score[h][p]));
          const F e = V::where_negative(past, exp_bounded<V>(s), V::zero());
          total[h] = V::add(total[h], e);
          V::store(weight + std::size_t(h) * stride + (row - first) + std::size_t(p) * L, e);
        }
      }
    }
    for (int h = 0; h < heads; ++h) sum[head + h] += V::sum(total[h]);
  }

  static void weigh_rows(const SketchScan& scan, std::size_t first, std::size_t count,
                         std::size_t cluster, float* weight, std::size_t stride, float* sum) {
    int h = 0;
    for (; h + 4 <= scan.heads; h += 4)
      weigh_heads<4>(scan, h, first, count, cluster, weight, stride, sum);
    switch (scan.heads - h) {
      case 3:
        weigh_heads<3>(scan, h, first, count, cluster, weight, stride, sum);
        break;
      case 2:
        weigh_heads<2>(scan, h, first, count, cluster, weight, stride, sum);
        break;
      case 1:
        weigh_heads<1>(scan, h, first, count, cluster, weight, stride, sum);
        break;
      default:
        break;
    }
  }

  static void add_heads(const float* weight, std::size_t count, std::size_t stride,
                        const float* share, int heads, float* out) {
    const auto sum_at = [&](std::size_t i, const auto& load) {
      F sum = V::mul(load(weight + i), V::set(share[0]));
      for (int h = 1; h < heads; ++h)
        sum = V::fma(load(weight + std::size_t(h) * stride + i), V::set(share[h]), sum);
      return sum;
    };
    std::size_t i = 0;
    for (; i + L <= count; i += L)
      V::store(out + i, sum_at(i, [](const float* p) { return V::load(p); }));
    const int rest = static_cast<int>(count - i);
    if (rest > 0)
      V::store_tail(out + i, sum_at(i, [&](const float* p) { return V::load_tail(p, rest); }),
                    rest);
  }

  // `rows` rows at once share the loads of the queries.
  template <typename Format, int heads, int rows>
  static void exact_rows(const std::byte* keys, std::size_t row_bytes, std::size_t key_dim,
                         const float* query, float* score, std::size_t stride) {
    using Reader = typename Format::template Reader<V>;
    const auto dim = static_cast<std::uint32_t>(key_dim);
    const auto key = [&](int r) { return Reader(keys + std::size_t(r) * row_bytes, dim); };
    const Reader first = key(0), second = key(rows > 1 ? 1 : 0), third = key(rows > 2 ? 2 : 0);
    F sum[rows][heads];
    for (int r = 0; r < rows; ++r)
      for (int h = 0; h < heads; ++h) sum[r][h] = V::zero();
    for (std::uint32_t i = 0; i < dim; i += L) {
      F k[rows];
      for (int r = 0; r < rows; ++r) k[r] = (r == 0 ? first : r == 1 ? second : third).load(i);
      for (int h = 0; h < heads; ++h) {
        const F q = V::load(query + std::size_t(h) * key_dim + i);
        for (int r = 0; r < rows; ++r) sum[r][h] = V::fma(k[r], q, sum[r][h]);
      }
    }
    for (int r = 0; r < rows; ++r)
      for (int h = 0; h < heads; ++h) score[std::size_t(h) * stride + r] = V::sum(sum[r][h]);
  }

  template <typename Format, int heads>
  static void exact_heads(const std::byte* keys, std::size_t row_bytes, std::size_t count,
                          std::size_t key_dim, const float* query, float* score,
                          std::size_t stride) {
    constexpr int kRows = heads <= 3 ? 3 : 2;
    std::size_t r = 0;
    constexpr std::size_t kAhead = 9;  // rows: their stride defeats the hardware's prefetching
    const std::size_t bytes = Format::bytes(static_cast<std::uint32_t>(key_dim));
    for (; r + kRows <= count; r += kRows) {
      for (std::size_t p = r + kAhead; p < std::min(r + kAhead + kRows, count); ++p)
        for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(keys + p * row_bytes + i);
      exact_rows<Format, heads, kRows>(keys + r * row_bytes, row_bytes, key_dim, query, score + r,
                                       stride);
    }
    for (; r < count; ++r)
      exact_rows<Format, heads, 1>(keys + r * row_bytes, row_bytes, key_dim, query, score + r,
                                   stride);
  }

  template <typename Format>
  static void exact_of(const std::byte* keys, std::size_t row_bytes, std::size_t count,
                       std::size_t key_dim, const float* query, int heads, float* out,
                       std::size_t stride) {
    int h = 0;
    const auto at = [&](int head) { return query + std::size_t(head) * key_dim; };
    const auto to = [&](int head) { return out + std::size_t(head) * stride; };
    for (; h + 4 <= heads; h += 4)
      exact_heads<Format, 4>(keys, row_bytes, count, key_dim, at(h), to(h), stride);
    switch (heads - h) {
      case 3:
        exact_heads<Format, 3>(keys, row_bytes, count, key_dim, at(h), to(h), stride);
        break;
      case 2:
        exact_heads<Format, 2>(keys, row_bytes, count, key_dim, at(h), to(h), stride);
        break;
      case 1:
        exact_heads<Format, 1>(keys, row_bytes, count, key_dim, at(h), to(h), stride);
        break;
      default:
        break;
    }
  }

  static void exact(RowFormat format, const std::byte* keys, std::size_t row_bytes,
                    std::size_t count, std::size_t key_dim, const float* query, int heads,
                    float* out, std::size_t stride) {
    visit_row(format, [&](auto coded) {
      exact_of<decltype(coded)>(keys, row_bytes, count, key_dim, query, heads, out, stride);
    });
  }

  static F absolute(F x) { return V::where_negative(x, V::sub(V::zero(), x), x); }
  // Of the two magnitudes that codes stand for, 0.5 and 1.5 scales, the one nearer to |x|.
  static F magnitude(F x, F scale) {
    return V::where_negative(V::sub(scale, absolute(x)), V::set(1.5f), V::set(0.5f));
  }

  // The least-squares scale for the codes that the scale before chose.
  static float fitted_scale(const float* x, std::size_t key_dim, float before) {
    F along = V::zero(), length = V::zero();
    for (std::size_t i = 0; i < key_dim; i += L) {
      const F value = V::load(x + i);
      const F m = magnitude(value, V::set(before));
      along = V::fma(absolute(value), m, along);
      length = V::fma(m, m, length);
    }
    return V::sum(along) / V::sum(length);
  }

  static f16 best_scale(const float* x, std::size_t key_dim) {
    constexpr int kRounds = 4;
    constexpr float kSmallest = 6.103515625e-5f, kLargest = 65504.0f;  // of normal f16
    F squares = V::zero();
    for (std::size_t i = 0; i < key_dim; i += L)
      squares = V::fma(V::load(x + i), V::load(x + i), squares);
    // The best step for normally distributed values is their deviation, almost.
    float scale = std::sqrt(V::sum(squares) / static_cast<float>(key_dim));
    for (int round = 0; round < kRounds && scale > 0.0f; ++round)
      scale = fitted_scale(x, key_dim, scale);
    if (!(scale >= kSmallest)) return to_f16(0.0f);  // NaN too
    return to_f16(scale < kLargest ? scale : kLargest);
  }

  static void encode(const float* residual, std::size_t key_dim, std::size_t first,
                     std::size_t count, std::uint8_t* codes, f16* scales) {
    for (std::size_t r = 0; r < count; ++r, residual += key_dim) {
      const std::size_t row = first + r;
      scales[row] = best_scale(residual, key_dim);
      const F scale = V::set(to_float(scales[row]));
      std::uint8_t* out =
          codes + row / kSketchGroup * kSketchGroup * key_dim / 4 + row % kSketchGroup * 4;
      for (std::size_t word = 0; word < key_dim; word += 16, out += kWordBytes) {
        alignas(64) float code[16];
        for (std::size_t i = 0; i < 16; i += L) {
          const F value = V::load(residual + word + i);
          const F m = magnitude(value, scale);
          const F middle = V::set(kSketchOffset);
          V::store(code + i, V::where_negative(value, V::sub(middle, m), V::add(middle, m)));
        }
        for (int j = 0; j < 4; ++j)
          out[j] = static_cast<std::uint8_t>(static_cast<int>(
              code[j] + 4.0f * code[4 + j] + 16.0f * code[8 + j] + 64.0f * code[12 + j]));
      }
    }
  }

  static void weigh(float* score, std::size_t count, float* max, float* sum) {
    const std::size_t whole = count / L * L;
    const int rest = static_cast<int>(count - whole);
    F most = V::set(kNone);
    for (std::size_t r = 0; r < whole; r += L) most = V::max(most, V::load(score + r));
    float largest = V::largest(most);
    for (std::size_t r = whole; r < count; ++r) largest = score[r] > largest ? score[r] : largest;

    const F shift = V::set(largest);
    const auto weight = [&](F s) {
      return V::keep_where_above(s, kNone, exp_bounded<V>(V::sub(s, shift)));
    };
    F total = V::zero();
    for (std::size_t r = 0; r < whole; r += L) {
      const F e = weight(V::load(score + r));
      V::store(score + r, e);
      total = V::add(total, e);
    }
    *sum = V::sum(total);
    if (rest > 0) {
      V::store_tail(score + whole, weight(V::load_tail(score + whole, rest)), rest);
      for (std::size_t r = whole; r < count; ++r) *sum += score[r];
    }
    *max = largest;
  }
};

template <typename V>
constexpr SketchOps make_sketch() {
  return {&Sketch<V>::exact, &Sketch<V>::weigh_rows, &Sketch<V>::add_heads, &Sketch<V>::encode,
          &Sketch<V>::weigh};
}

}  // namespace
}  // namespace thermocline
