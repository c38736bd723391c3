// One, two or four bits a channel of a key's residual to its cluster's mean, after a Hadamard
// rotation, with one scale a row: with two bits a sketch that ranks keys almost as well as the keys
// do, for an eighth of the bytes; with four, scores to attend by.
//
// Layout of the codes of b bits of one KV head, for any vector length: groups of 16 rows; in a
// group, words of 64 bytes, each of n = 32 / b channels; in word t, byte 4 * row + j holds the
// codes of channels n t + 4 s + j in its b bits from b s on. So a shift and a mask give 4 channels
// of 16 rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attend.h"
#include "kernels/base/half.h"
#include "kernels/format/row.h"

namespace thermocline {

inline constexpr int kSketchGroup = 16;
// A code c stands for (c - sketch_middle(bits)) * scale.
constexpr float sketch_middle(int bits) { return static_cast<float>((1 << bits) - 1) / 2; }
// No score is taken as more than this above the reference: its exponential times any number of rows
// is finite.
inline constexpr float kSketchMostAbove = 60.0f;
// What a code loses of its row grows with the square of its scale; of rows that are as good as
// their means, where it is less than this, most is lost of those with most attention.
inline constexpr float kSketchLeastSquare = 1e-9f;
// A cluster whose unread rows have less than this share of the query heads' attention together is
// left out of the estimate: those left out have a tenth of a percent together, or little more.
inline constexpr float kSketchNegligible = 5e-5f;

// Whether keys of so many channels can be coded with so many bits each.
constexpr bool sketch_takes(int bits, std::size_t key_dim) {
  return (bits == 1 || bits == 2 || bits == 4) && key_dim > 0 && key_dim % 16 == 0 &&
         key_dim % (32 / static_cast<std::size_t>(bits)) == 0;
}
// Of one row, scale apart; rows come in whole groups.
constexpr std::size_t sketch_row_bytes(int bits, std::size_t key_dim) {
  return key_dim * static_cast<std::size_t>(bits) / 8;
}
constexpr std::size_t sketch_bytes(int bits, std::size_t rows, std::size_t key_dim) {
  return (rows + kSketchGroup - 1) / kSketchGroup * kSketchGroup * sketch_row_bytes(bits, key_dim);
}

// A query head prepared for scanning: rotated as the residuals were and rounded to 8 bits.
struct SketchQuery {
  const std::int8_t* code = nullptr;  // [key_dim]
  float scale = 0;                    // query ~ code * scale
  std::int32_t sum = 0;               // of code
};

// A segment's rows of one KV head, and what scores them.
struct SketchScan {
  int bits = 2;
  const std::uint8_t* codes = nullptr;    // whole groups, as above
  const f16* scales = nullptr;            // one a row
  const std::uint16_t* starts = nullptr;  // cluster c is the rows [starts[c], starts[c + 1])
  std::size_t key_dim = 0;                // sketch_takes(bits, key_dim)
  int heads = 0;                          // query heads
  const SketchQuery* queries = nullptr;   // [heads]
  const float* cluster_score = nullptr;   // [heads][cluster_stride]: query h . mean of cluster c
  std::size_t cluster_stride = 0;
  const float* shift = nullptr;  // [heads]: what scores are taken relative to
};

struct SketchOps {
  // score[h * stride + r] = query h . key r, where queries that meet bytes may be rounded to 16
  // bits, for the keys of `count` rows, `row_bytes` apart; query is [heads][key_dim], key_dim a
  // multiple of 16.
  void (*dot_rows)(RowFormat format, const std::byte* keys, std::size_t row_bytes,
                   std::size_t count, std::size_t key_dim, const float* query, int heads,
                   float* score, std::size_t stride);
  // weight[h * stride + r] = e^(score - shift[h]), within 1.1e-4 of it (what ranks rows by a few
  // bits a channel needs no more), for rows first + r, r < count; score is that of the row's
  // cluster and of its sketch, at most kSketchMostAbove above the shift. first is a multiple of
  // kSketchGroup and lies in `cluster`. Up to the end of the last group weights are 0. Adds each
  // head's weights to sum[h].
  void (*weigh_rows)(const SketchScan& scan, std::size_t first, std::size_t count,
                     std::size_t cluster, float* weight, std::size_t stride, float* sum);
  // unread[c] = how many rows of cluster c, of [starts[c], starts[c + 1]), are not in `sets`, which
  // has a bit for each row from row 0 on; sets
  // bit c % 64 of estimated[c / 64] where there are any and mass[c] * unread[c] >= least.
  void (*find_unread)(const RowSet* sets, const std::uint16_t* starts, const float* mass,
                      std::size_t clusters, float least, std::uint16_t* unread, RowSet* estimated);
  // out[i] = sum over h of weight[h * stride + i] * share[h]; out may be weight.
  void (*add_heads)(const float* weight, std::size_t count, std::size_t stride, const float* share,
                    int heads, float* out);
  // To loss, one after the other, of the rows r < count whose bit first + r is set in `rows`: what
  // would be lost by their codes, mass[r] * max(scales[r]^2, kSketchLeastSquare). first is a
  // multiple of kSketchGroup. Mass and scales are read up to the end of the last group, no row of
  // which is set beyond count; loss has room for kSketchGroup more. Returns how many.
  std::size_t (*losses)(const float* mass, const f16* scales, const RowSet* rows, std::size_t first,
                        std::size_t count, float* loss);
  // Codes rows [first, first + count): residual [count][key_dim] is rotated already. Codes and
  // scale are fitted to each other in turns. A row that is not finite gets a scale of 0 or the
  // largest.
  void (*encode)(int bits, const float* residual, std::size_t key_dim, std::size_t first,
                 std::size_t count, std::uint8_t* codes, f16* scales);
  // The same of one row to its rotated format (kernels/format/row_rotated.h), of 2 or 4 bits.
  void (*encode_row)(int bits, const float* residual, std::size_t dim, std::byte* row);
  // Rotates and rounds a query; rotated [key_dim] is scratch, code [key_dim] is where the result
  // points. key_dim is a multiple of 16.
  SketchQuery (*prepare)(const float* query, std::size_t key_dim, float* rotated,
                         std::int8_t* code);
  // In place, weight [rows][heads]: weight -> shift[h] + ln(weight), of a weight below the smallest
  // normal number that of this one. shift repeats itself up to heads + 16.
  void (*log_weights)(float* weight, std::size_t rows, const float* shift, int heads);
  // In place: score -> e^(score - max) for `count` values; returns max and sum. No values, or only
  // -inf: max -inf, sum 0.
  void (*weigh)(float* score, std::size_t count, float* max, float* sum);
};

}  // namespace thermocline
