// Two bits a channel of a key's residual to its cluster's mean, after a Hadamard rotation, with one
// scale a row: a sketch that ranks keys almost as well as the keys do, for a sixteenth of the
// bytes.
//
// Layout of the codes of one KV head, for any vector length: groups of 16 rows; in a group,
// key_dim / 16 words of 64 bytes; in word t, byte 4 * row + j holds the codes of channels
// 16 t + 4 s + j in its bits 2 s, 2 s + 1. So a shift and a mask give 4 channels of 16 rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attend.h"
#include "kernels/base/half.h"
#include "kernels/format/row.h"

namespace thermocline {

inline constexpr int kSketchGroup = 16;
// A code c stands for (c - 1.5) * scale.
inline constexpr float kSketchOffset = 1.5f;
// No score is taken as more than this above the reference: its exponential times any number of rows
// is finite.
inline constexpr float kSketchMostAbove = 60.0f;

constexpr std::size_t sketch_bytes(std::size_t rows, std::size_t key_dim) {
  return (rows + kSketchGroup - 1) / kSketchGroup * kSketchGroup * key_dim / 4;
}

// A query head prepared for scanning: rotated as the residuals were and rounded to 8 bits.
struct SketchQuery {
  const std::int8_t* code = nullptr;  // [key_dim]
  float scale = 0;                    // query ~ code * scale
  std::int32_t sum = 0;               // of code
};

// A segment's rows of one KV head, and what scores them.
struct SketchScan {
  const std::uint8_t* codes = nullptr;    // whole groups, as above
  const f16* scales = nullptr;            // one a row
  const std::uint16_t* starts = nullptr;  // cluster c is the rows [starts[c], starts[c + 1])
  std::size_t key_dim = 0;                // a multiple of 16
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
  // weight[h * stride + r] = e^(score - shift[h]), within 1.1e-4 of it (what ranks rows by two bits
  // a channel needs no more), for rows first + r, r < count; score is that of the row's cluster and
  // of its sketch, at most kSketchMostAbove above the shift. first is a multiple of kSketchGroup
  // and lies in `cluster`. Up to the end of the last group weights are 0. Adds each head's weights
  // to sum[h].
  void (*weigh_rows)(const SketchScan& scan, std::size_t first, std::size_t count,
                     std::size_t cluster, float* weight, std::size_t stride, float* sum);
  // unread[c] = how many rows of cluster c are not in `sets`, which has a bit for each row; sets
  // bit c % 64 of estimated[c / 64] where there are any and mass[c] * unread[c] >= least.
  void (*find_unread)(const RowSet* sets, const std::uint16_t* starts, const float* mass,
                      std::size_t clusters, float least, std::uint16_t* unread, RowSet* estimated);
  // out[i] = sum over h of weight[h * stride + i] * share[h]; out may be weight.
  void (*add_heads)(const float* weight, std::size_t count, std::size_t stride, const float* share,
                    int heads, float* out);
  // Codes rows [first, first + count): residual [count][key_dim] is rotated already. Codes and
  // scale are fitted to each other in turns. A row that is not finite gets a scale of 0 or the
  // largest.
  void (*encode)(const float* residual, std::size_t key_dim, std::size_t first, std::size_t count,
                 std::uint8_t* codes, f16* scales);
  // In place: score -> e^(score - max) for `count` values; returns max and sum. No values, or only
  // -inf: max -inf, sum 0.
  void (*weigh)(float* score, std::size_t count, float* max, float* sum);
};

// In place fast Walsh-Hadamard transform, orthonormal, of the largest power of two that divides n,
// block by block (n = 96: three blocks of 32).
void hadamard(float* x, std::size_t n);

// rotated [key_dim] is scratch; code [key_dim] is where the result points.
SketchQuery prepare_query(const float* query, std::size_t key_dim, float* rotated,
                          std::int8_t* code);

}  // namespace thermocline
