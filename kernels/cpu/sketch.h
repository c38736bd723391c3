// SketchOps over a Vec. Lanes are rows: a word of codes gives four channels of as many rows as
// there are lanes, which one instruction multiplies by four of the query's channels. The unpacked
// codes are shared by the query heads.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/cpu/hadamard.h"
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
  // Channels of a word of codes; and words before 16-bit sums may overflow, to which a quad of
  // channels adds two products.
  template <int bits>
  static constexpr std::size_t kWordChannels = 32 / bits;
  template <int bits>
  static constexpr std::size_t kWordsAtOnce = bits == 4 ? 4 : 8;
  static constexpr float kNone = -std::numeric_limits<float>::infinity();
  alignas(64) static constexpr float kRank[kSketchGroup] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                            8, 9, 10, 11, 12, 13, 14, 15};

  // Calls body(how many at once, first of them) for all heads, up to four at once.
  template <typename Body>
  static void for_heads(int heads, const Body& body) {
    int h = 0;
    for (; h + 4 <= heads; h += 4) body(std::integral_constant<int, 4>(), h);
    switch (heads - h) {
      case 3:
        return body(std::integral_constant<int, 3>(), h);
      case 2:
        return body(std::integral_constant<int, 2>(), h);
      case 1:
        return body(std::integral_constant<int, 1>(), h);
      default:
        return;
    }
  }

  // Groups that are taken together: as many as their sums leave room for in the register file,
  // since they share the loads of the queries.
  static constexpr int kTogether = L == 16 ? 2 : 1;
  static constexpr std::size_t kAheadRows = 64;

  // The integer dot products of `groups` neighbouring groups with `heads` queries.
  template <int bits, int heads, int groups>
  static void group_dots(const std::uint8_t* codes, std::size_t words, const SketchQuery* queries,
                         I (&total)[heads][groups * kParts]) {
    constexpr int kAll = groups * kParts;
    const auto part_of_word = [&](int p, std::size_t w) {
      return codes + (std::size_t(p / kParts) * words + w) * kWordBytes +
             std::size_t(p % kParts) * 4 * L;
    };
    for (int h = 0; h < heads; ++h)
      for (int p = 0; p < kAll; ++p) total[h][p] = V::izero();
    for (std::size_t from = 0; from < words; from += kWordsAtOnce<bits>) {
      const std::size_t to = std::min(from + kWordsAtOnce<bits>, words);
      constexpr std::size_t n = kWordChannels<bits>;
      static_assert(2 * ((1 << bits) - 1) * 127 * (n / 4) * kWordsAtOnce<bits> < 1 << 15);
      I sums[heads][kAll];
      for (int h = 0; h < heads; ++h)
        for (int p = 0; p < kAll; ++p) sums[h][p] = V::izero();
      for (std::size_t w = from; w < to; ++w) {
        B word[kAll];
        for (int p = 0; p < kAll; ++p) word[p] = V::load_bytes(part_of_word(p, w));
          // Not unrolled: the compiler would turn the sums into a tree and spill its leaves.
#pragma GCC unroll 1
        for (std::size_t channel = n * w; channel < n * (w + 1); channel += 4) {
          B crumbs[kAll];
          for (int p = 0; p < kAll; ++p) {
            crumbs[p] = V::template crumbs<bits>(word[p]);
            word[p] = V::template next_crumbs<bits>(word[p]);
          }
          for (int h = 0; h < heads; ++h) {
            const B quad = V::quad(queries[h].code + channel);
            for (int p = 0; p < kAll; ++p) sums[h][p] = V::dot4(sums[h][p], crumbs[p], quad);
          }
        }
      }
      for (int h = 0; h < heads; ++h)
        for (int p = 0; p < kAll; ++p)
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

  // A pass over rows for some of the heads.
  template <int bits, int heads>
  struct Pass {
    const SketchScan& scan;
    const int head;  // the first
    const std::size_t end;
    std::size_t cluster;
    F scale[heads], middle[heads], total[heads];

    Pass(const SketchScan& all, int first_head, std::size_t last, std::size_t first_cluster)
        : scan(all), head(first_head), end(last), cluster(first_cluster) {
      for (int h = 0; h < heads; ++h) {
        const SketchQuery& query = scan.queries[head + h];
        scale[h] = V::set(query.scale);
        middle[h] = V::set(sketch_middle(bits) * static_cast<float>(query.sum));
        total[h] = V::zero();
      }
    }

    // Weights of the groups from `row` on, to weight [heads][stride].
    template <int groups>
    void weigh(std::size_t row, float* weight, std::size_t stride) {
      const std::size_t words = scan.key_dim / kWordChannels<bits>;
      const std::uint8_t* codes = scan.codes + row / kSketchGroup * words * kWordBytes;
      // The hardware's own prefetching stops at the end of a page: 256 rows of 64 channels.
      if (row + kAheadRows < end) {
        __builtin_prefetch(scan.scales + row + kAheadRows);
        for (std::size_t w = 0; w < groups * words; ++w)
          __builtin_prefetch(codes + (kAheadRows / kSketchGroup * words + w) * kWordBytes);
      }
      I dots[heads][groups * kParts];
      group_dots<bits, heads, groups>(codes, words, scan.queries + head, dots);
      for (int g = 0; g < groups; ++g, row += kSketchGroup) {
        const std::size_t group_end = std::min(row + kSketchGroup, end);
        F score[heads][kParts];
        cluster_scores<heads>(scan, head, row, group_end, &cluster, score);
        for (int p = 0; p < kParts; ++p, weight += L) {
          const F row_scale = V::load(scan.scales + row + std::size_t(p) * L);
          const F past =
              V::sub(V::load(kRank + p * L), V::set(static_cast<float>(group_end - row)));
          for (int h = 0; h < heads; ++h) {
            const F dot = V::mul(V::sub(V::to_float(dots[h][g * kParts + p]), middle[h]), scale[h]);
            // Not a number: weight 0.
            const F s = V::min(V::set(kSketchMostAbove), V::fma(dot, row_scale, score[h][p]));
            const F e = V::where_negative(past, V::exp_coarse(s), V::zero());
            total[h] = V::add(total[h], e);
            V::store(weight + std::size_t(h) * stride, e);
          }
        }
      }
    }
  };

  template <int bits, int heads>
  static void weigh_heads(const SketchScan& scan, int head, std::size_t first, std::size_t count,
                          std::size_t cluster, float* weight, std::size_t stride, float* sum) {
    constexpr std::size_t kRows = kTogether * kSketchGroup;
    weight += std::size_t(head) * stride;
    const std::size_t end = first + count;
    Pass<bits, heads> pass(scan, head, end, cluster);
    std::size_t row = first;
    // The last groups may begin where no row is left.
    for (; row + kRows - kSketchGroup < end; row += kRows, weight += kRows)
      pass.template weigh<kTogether>(row, weight, stride);
    if (row < end) pass.template weigh<1>(row, weight, stride);
    for (int h = 0; h < heads; ++h) sum[head + h] += V::sum(pass.total[h]);
  }

  // Calls body with the bits as a constant.
  template <typename Body>
  static void with_bits(int bits, const Body& body) {
    if (bits == 1) return body(std::integral_constant<int, 1>());
    if (bits == 4) return body(std::integral_constant<int, 4>());
    return body(std::integral_constant<int, 2>());
  }

  static void weigh_rows(const SketchScan& scan, std::size_t first, std::size_t count,
                         std::size_t cluster, float* weight, std::size_t stride, float* sum) {
    with_bits(scan.bits, [&](auto bits) {
      for_heads(scan.heads, [&](auto at_once, int h) {
        weigh_heads<decltype(bits)::value, decltype(at_once)::value>(scan, h, first, count, cluster,
                                                                     weight, stride, sum);
      });
    });
  }

  static void find_unread(const RowSet* sets, const std::uint16_t* starts, const float* mass,
                          std::size_t clusters, float least, std::uint16_t* unread,
                          RowSet* estimated) {
    // Taken rows, from the word on in which the first cluster begins.
    unsigned word = starts[0] / kBlockRows, before_word = 0;
    const int first_in_word = starts[0] % kBlockRows;
    unsigned before_cluster =
        first_in_word == 0
            ? 0
            : static_cast<unsigned>(std::popcount(sets[word] & first_rows(first_in_word)));
    for (std::size_t c = 0; c < clusters; ++c) {
      const unsigned end = starts[c + 1];
      for (; (word + 1) * kBlockRows <= end; ++word)
        before_word += static_cast<unsigned>(std::popcount(sets[word]));
      const int in_word = static_cast<int>(end - word * kBlockRows);
      const RowSet before = in_word == 0 ? 0 : sets[word] & first_rows(in_word);
      const unsigned before_end = before_word + static_cast<unsigned>(std::popcount(before));
      unread[c] = static_cast<std::uint16_t>(end - starts[c] - (before_end - before_cluster));
      before_cluster = before_end;
    }
    for (std::size_t first = 0; first < clusters; first += kBlockRows) {
      RowSet set = 0;
      const std::size_t end = std::min<std::size_t>(first + kBlockRows, clusters);
      for (std::size_t c = first; c < end; ++c)
        set |= RowSet{unread[c] != 0 && mass[c] * static_cast<float>(unread[c]) >= least}
               << (c - first);
      estimated[first / kBlockRows] = set;
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

  static std::size_t losses(const float* mass, const f16* scales, const RowSet* rows,
                            std::size_t first, std::size_t count, float* loss) {
    const F least = V::set(kSketchLeastSquare);
    std::size_t kept = 0;
    for (std::size_t r = 0; r < count; r += kSketchGroup) {
      const RowSet word = rows[(first + r) / kBlockRows] >> (first + r) % kBlockRows;
      const auto group = static_cast<std::uint32_t>(word & first_rows(kSketchGroup));
      if (group == 0) continue;
      for (int i = 0; i < kSketchGroup; i += L) {
        const F scale = V::load(scales + r + i);
        const F lost = V::mul(V::load(mass + r + i), V::max(V::mul(scale, scale), least));
        kept += V::keep(loss + kept, lost, group >> i & ((1u << L) - 1));
      }
    }
    return kept;
  }

  // `rows` rows at once share the loads of the queries.
  template <typename Format, int heads, int rows>
  static void float_rows(const std::byte* keys, std::size_t row_bytes, std::size_t key_dim,
                         const float* query, float* score, std::size_t stride) {
    using Reader = typename Format::template Reader<V>;
    const auto dim = static_cast<std::uint32_t>(key_dim);
    const auto key = [&](int r) { return Reader(keys + std::size_t(r) * row_bytes, dim); };
    const Reader each[4] = {key(0), key(rows > 1 ? 1 : 0), key(rows > 2 ? 2 : 0),
                            key(rows > 3 ? 3 : 0)};
    F sum[heads][rows];
    for (int h = 0; h < heads; ++h)
      for (int r = 0; r < rows; ++r) sum[h][r] = V::zero();
    for (std::uint32_t i = 0; i < dim; i += L) {
      F k[rows];
      for (int r = 0; r < rows; ++r)
        k[r] = kGrouped<Format> ? each[r].load(i / kRowGroup * kRowGroup, i % kRowGroup)
                                : each[r].load(i, 0);
      for (int h = 0; h < heads; ++h) {
        const F q = V::load(query + std::size_t(h) * key_dim + i);
        for (int r = 0; r < rows; ++r) sum[h][r] = V::fma(k[r], q, sum[h][r]);
      }
    }
    for (int h = 0; h < heads; ++h)
      if constexpr (rows == 4)
        V::sums4(sum[h], score + std::size_t(h) * stride);
      else
        for (int r = 0; r < rows; ++r) score[std::size_t(h) * stride + r] = V::sum(sum[h][r]);
  }

  template <typename Format, int heads>
  static void float_heads(const std::byte* keys, std::size_t row_bytes, std::size_t count,
                          std::size_t key_dim, const float* query, float* score,
                          std::size_t stride) {
    constexpr int kRows = L == 16 ? 4 : heads <= 3 ? 3 : 2;
    std::size_t r = 0;
    constexpr std::size_t kAhead = 9;  // rows: their stride defeats the hardware's prefetching
    const std::size_t bytes = Format::bytes(static_cast<std::uint32_t>(key_dim));
    for (; r + kRows <= count; r += kRows) {
      for (std::size_t p = r + kAhead; p < std::min(r + kAhead + kRows, count); ++p)
        for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(keys + p * row_bytes + i);
      float_rows<Format, heads, kRows>(keys + r * row_bytes, row_bytes, key_dim, query, score + r,
                                       stride);
    }
    for (; r < count; ++r)
      float_rows<Format, heads, 1>(keys + r * row_bytes, row_bytes, key_dim, query, score + r,
                                   stride);
  }

  // Of bytes: a product of integers takes a third of the instructions. The queries are rounded to
  // 16 bits: no sum of kMostIntegers products with bytes overflows.
  static constexpr std::size_t kMostIntegers = 512;
  static constexpr bool fits_integers(std::size_t key_dim) {
    return key_dim % (2 * L) == 0 && key_dim <= kMostIntegers;
  }
  struct IntegerQuery {
    alignas(64) std::int16_t code[kMostIntegers];
    float scale;
  };

  static void round_query(const float* query, std::size_t key_dim, IntegerQuery* out) {
    constexpr float kLargest = 32767.0f;
    F most = V::zero(), not_finite = V::zero();
    for (std::size_t i = 0; i < key_dim; i += L) {
      const F x = V::load(query + i);
      most = V::max(absolute(x), most);               // passes over what is not a number
      not_finite = V::fma(x, V::zero(), not_finite);  // NaN then, or of an infinity
    }
    const float largest = V::largest(most), poison = V::sum(not_finite);
    const bool tiny = !(largest > std::numeric_limits<float>::min()) || poison != 0.0f;
    const F by = V::set(tiny ? 0.0f : kLargest / largest);
    for (std::size_t i = 0; i < key_dim; i += L)
      V::store_i16(out->code + i, tiny ? V::zero() : V::round(V::mul(V::load(query + i), by)));
    out->scale = largest / kLargest + poison;
  }

  template <int heads, int rows>
  static void integer_rows(const std::byte* keys, std::size_t row_bytes, std::size_t key_dim,
                           const IntegerQuery* query, float* score, std::size_t stride) {
    const std::int8_t* key[rows];
    for (int r = 0; r < rows; ++r) key[r] = RowInt8::codes(keys + std::size_t(r) * row_bytes);
    I sum[heads][rows];
    for (int h = 0; h < heads; ++h)
      for (int r = 0; r < rows; ++r) sum[h][r] = V::izero();
    for (std::size_t i = 0; i < key_dim; i += 2 * L) {
      I k[rows];
      for (int r = 0; r < rows; ++r) k[r] = V::load_words(key[r] + i);
      for (int h = 0; h < heads; ++h) {
        const I q = V::load_i16(query[h].code + i);
        for (int r = 0; r < rows; ++r) sum[h][r] = V::madd_to(sum[h][r], k[r], q);
      }
    }
    float scale[rows];
    for (int r = 0; r < rows; ++r)
      scale[r] = V::to_float(
          RowInt8::scale(keys + std::size_t(r) * row_bytes, static_cast<std::uint32_t>(key_dim)));
    for (int h = 0; h < heads; ++h) {
      F lanes[rows];
      float dot[rows];
      for (int r = 0; r < rows; ++r) lanes[r] = V::to_float(sum[h][r]);
      if constexpr (rows == 4)
        V::sums4(lanes, dot);
      else
        dot[0] = V::sum(lanes[0]);
      for (int r = 0; r < rows; ++r)
        score[std::size_t(h) * stride + r] = dot[r] * (query[h].scale * scale[r]);
    }
  }

  template <int heads>
  static void integer_heads(const std::byte* keys, std::size_t row_bytes, std::size_t count,
                            std::size_t key_dim, const float* query, float* score,
                            std::size_t stride) {
    IntegerQuery rounded[heads];
    for (int h = 0; h < heads; ++h)
      round_query(query + std::size_t(h) * key_dim, key_dim, &rounded[h]);
    constexpr std::size_t kAhead = 12;  // rows: their stride defeats the hardware's prefetching
    std::size_t r = 0;
    for (; r + 4 <= count; r += 4) {
      for (std::size_t p = r + kAhead; p < std::min(r + kAhead + 4, count); ++p)
        for (std::size_t i = 0; i <= key_dim; i += 64) __builtin_prefetch(keys + p * row_bytes + i);
      integer_rows<heads, 4>(keys + r * row_bytes, row_bytes, key_dim, rounded, score + r, stride);
    }
    for (; r < count; ++r)
      integer_rows<heads, 1>(keys + r * row_bytes, row_bytes, key_dim, rounded, score + r, stride);
  }

  static void dot_rows(RowFormat format, const std::byte* keys, std::size_t row_bytes,
                       std::size_t count, std::size_t key_dim, const float* query, int heads,
                       float* out, std::size_t stride) {
    for_heads(heads, [&](auto at_once, int h) {
      constexpr int kHeads = decltype(at_once)::value;
      const float* q = query + std::size_t(h) * key_dim;
      float* score = out + std::size_t(h) * stride;
      if (format == RowFormat::int8 && fits_integers(key_dim)) {
        integer_heads<kHeads>(keys, row_bytes, count, key_dim, q, score, stride);
      } else {
        visit_row(format, [&](auto coded) {
          using Format = decltype(coded);
          if constexpr (!kFitted<Format>) {  // an index keeps none of those
            alignas(64) float rotated[kHeads * kMaxHeadSize];
            if (Format::kRotated)
              for (std::size_t g = 0; g < kHeads; ++g) {
                std::copy_n(q + g * key_dim, key_dim, rotated + g * key_dim);
                rotate<V>(rotated + g * key_dim, key_dim);
              }
            float_heads<Format, kHeads>(keys, row_bytes, count, key_dim,
                                        Format::kRotated ? rotated : q, score, stride);
          }
        });
      }
    });
  }

  static F absolute(F x) { return V::where_negative(x, V::sub(V::zero(), x), x); }
  // Of the magnitudes that codes stand for, 0.5, 1.5 ... scales, the one nearest to |x|; the
  // smallest of what is not a number.
  template <int bits>
  static F magnitude(F x, F scale) {
    const F half = V::set(0.5f);
    const F steps = V::round(V::max(V::sub(V::div(absolute(x), scale), half), V::zero()));
    return V::add(V::min(steps, V::set(static_cast<float>((1 << bits) / 2 - 1))), half);
  }

  // The least-squares scale for the codes that the scale before chose.
  template <int bits>
  static float fitted_scale(const float* x, std::size_t dim, float before) {
    F along = V::zero(), length = V::zero();
    for (std::size_t i = 0; i < dim; i += L) {
      const F value = V::load(x + i);
      const F m = magnitude<bits>(value, V::set(before));
      along = V::fma(absolute(value), m, along);
      length = V::fma(m, m, length);
    }
    return V::sum(along) / V::sum(length);
  }

  template <int bits>
  static f16 best_scale(const float* x, std::size_t dim) {
    constexpr int kRounds = 4;
    constexpr float kSmallest = 6.103515625e-5f, kLargest = 65504.0f;  // of normal f16
    // The best step between codes of normally distributed values, in deviations.
    constexpr float kStep = bits == 1 ? 1.5958f : bits == 2 ? 0.9957f : 0.3352f;
    F squares = V::zero();
    for (std::size_t i = 0; i < dim; i += L)
      squares = V::fma(V::load(x + i), V::load(x + i), squares);
    float scale = kStep * std::sqrt(V::sum(squares) / static_cast<float>(dim));
    for (int round = 0; round < kRounds && scale > 0.0f; ++round)
      scale = fitted_scale<bits>(x, dim, scale);
    if (!(scale >= kSmallest)) return to_f16(0.0f);  // NaN too
    return to_f16(scale < kLargest ? scale : kLargest);
  }

  // The codes of `count` channels, a multiple of lanes, as floats.
  template <int bits>
  static void find_codes(const float* x, std::size_t count, float scale, float* code) {
    const F middle = V::set(sketch_middle(bits));
    for (std::size_t i = 0; i < count; i += L) {
      const F value = V::load(x + i);
      const F m = magnitude<bits>(value, V::set(scale));
      V::store(code + i, V::where_negative(value, V::sub(middle, m), V::add(middle, m)));
    }
  }

  template <int bits>
  static void encode_all(const float* residual, std::size_t key_dim, std::size_t first,
                         std::size_t count, std::uint8_t* codes, f16* scales) {
    constexpr std::size_t n = kWordChannels<bits>, at_once = n < 16 ? 16 : n;
    for (std::size_t r = 0; r < count; ++r, residual += key_dim) {
      const std::size_t row = first + r;
      scales[row] = best_scale<bits>(residual, key_dim);
      std::uint8_t* out = codes +
                          row / kSketchGroup * kSketchGroup * sketch_row_bytes(bits, key_dim) +
                          row % kSketchGroup * 4;
      for (std::size_t i = 0; i < key_dim; i += at_once) {
        alignas(64) float code[at_once];
        find_codes<bits>(residual + i, at_once, to_float(scales[row]), code);
        for (std::size_t word = 0; word < at_once; word += n, out += kWordBytes)
          for (std::size_t j = 0; j < 4; ++j) {
            unsigned packed = 0;
            for (std::size_t s = 0; s < n / 4; ++s)
              packed |= static_cast<unsigned>(code[word + 4 * s + j]) << bits * s;
            out[j] = static_cast<std::uint8_t>(packed);
          }
      }
    }
  }

  static void encode(int bits, const float* residual, std::size_t key_dim, std::size_t first,
                     std::size_t count, std::uint8_t* codes, f16* scales) {
    with_bits(bits, [&](auto all) {
      encode_all<decltype(all)::value>(residual, key_dim, first, count, codes, scales);
    });
  }

  template <int bits>
  static void encode_rotated(const float* residual, std::size_t dim, std::byte* row) {
    using Format = RowRotated<bits>;
    const f16 scale = best_scale<bits>(residual, dim);
    const auto size = static_cast<std::uint32_t>(dim);
    std::fill_n(row, Format::bytes(size), std::byte{0});
    std::memcpy(row + Format::codes_bytes(size), &scale, sizeof scale);
    for (std::size_t i = 0; i < dim; i += 16) {
      alignas(64) float code[16];
      find_codes<bits>(residual + i, 16, to_float(scale), code);
      for (std::size_t c = 0; c < 16; ++c)
        row[(i + c) * bits / 8] |=
            static_cast<std::byte>(static_cast<unsigned>(code[c]) << (i + c) * bits % 8);
    }
  }

  static void encode_row(int bits, const float* residual, std::size_t dim, std::byte* row) {
    if (bits == 4) return encode_rotated<4>(residual, dim, row);
    encode_rotated<2>(residual, dim, row);
  }

  static SketchQuery prepare(const float* query, std::size_t key_dim, float* rotated,
                             std::int8_t* code) {
    std::copy_n(query, key_dim, rotated);
    rotate<V>(rotated, key_dim);
    F most = V::zero();
    for (std::size_t i = 0; i < key_dim; i += L)
      most = V::max(absolute(V::load(rotated + i)), most);  // passes over what is not a number
    const float largest = V::largest(most);
    SketchQuery out{code, largest / 127.0f, 0};
    if (!(largest > 0.0f) || !std::isfinite(largest)) {
      std::fill_n(code, key_dim, std::int8_t{0});
      return out;
    }
    const F by = V::set(127.0f / largest), bound = V::set(127.0f);
    for (std::size_t i = 0; i < key_dim; i += L) {
      const F rounded = V::round(V::mul(V::load(rotated + i), by));
      V::store(rotated + i, V::max(V::min(rounded, bound), V::sub(V::zero(), bound)));
    }
    for (std::size_t i = 0; i < key_dim; ++i) {
      code[i] = static_cast<std::int8_t>(rotated[i]);
      out.sum += code[i];
    }
    return out;
  }

  static void log_weights(float* weight, std::size_t rows, const float* shift, int heads) {
    const std::size_t count = rows * std::size_t(heads), step = L % std::size_t(heads);
    const auto log_at = [&](F w, std::size_t head) {
      return V::add(log_bounded<V>(w), V::load(shift + head));
    };
    std::size_t i = 0, head = 0;  // of value i
    for (; i + L <= count; i += L) {
      V::store(weight + i, log_at(V::load(weight + i), head));
      head += step;
      if (head >= std::size_t(heads)) head -= std::size_t(heads);
    }
    const int rest = static_cast<int>(count - i);
    if (rest > 0) V::store_tail(weight + i, log_at(V::load_tail(weight + i, rest), head), rest);
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
  return {&Sketch<V>::dot_rows,   &Sketch<V>::weigh_rows, &Sketch<V>::find_unread,
          &Sketch<V>::add_heads,  &Sketch<V>::losses,     &Sketch<V>::encode,
          &Sketch<V>::encode_row, &Sketch<V>::prepare,    &Sketch<V>::log_weights,
          &Sketch<V>::weigh};
}

}  // namespace
}  // namespace thermocline
