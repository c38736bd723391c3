// Attention as algebra. A partial attention over some rows is a value (AttnState) with an identity
// and a merge; a fold is the unit that is computed whole. Which folds there are depends on the
// read list alone; they are computed in any order, on any thread, and merged in list order: so the
// bits of an answer never depend on where rows were, or on who attended them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "kernels/base/half.h"
#include "kernels/base/head_size.h"
#include "kernels/base/view.h"
#include "kernels/format/fit.h"
#include "kernels/format/row.h"
#include "kernels/gemm_type.h"

namespace thermocline {

inline constexpr int kBlockRows = 64;  // rows a block: a set of them is one word
inline constexpr int kFoldRows = 256;  // rows a fold at most: part of the answer
using RowSet = std::uint64_t;          // bit r: row r of a block
inline constexpr RowSet kAllRows = ~RowSet{0};

inline int count(RowSet rows) { return std::popcount(rows); }
// The first n rows (0 <= n <= 64).
constexpr RowSet first_rows(int n) { return n >= 64 ? kAllRows : (RowSet{1} << n) - 1; }

// Rows of one block that a processor can reach now. `key` and `value` point at row 0 of the block,
// which may lie outside of what is mapped when row 0 is not in `rows`: only rows in `rows` are
// touched. They are taken by rank, so a masked block and its gathered rows give the same bits.
struct BlockView {
  const std::byte* key = nullptr;
  const std::byte* value = nullptr;
  RowSet rows = 0;
  const float* log_weight = nullptr;  // by rank within `rows`; null: all 0; see Fold::scored
  std::uint32_t first_number = 0;     // of row 0, where a side of the fold is fitted
};

// Consecutive rows of one read list within one segment.
struct Fold {
  RowFormat key_format = RowFormat::f16, value_format = RowFormat::f16;
  std::uint32_t key_stride = 0, value_stride = 0;  // bytes from a row to the next
  std::span<const BlockView> blocks;               // at most kFoldRows rows together
  // The blocks' log weights are [rank][query heads] and whole scores: keys are not read. Such a
  // fold has no place in a tile.
  bool scored = false;
  // Of a scored fold: its values are what other rows' values lack, and those rows have its weights
  // in theirs: so it adds to acc alone, and the state's sum is 0.
  bool residual = false;
  SideFit key_fit = {}, value_fit = {};  // of formats that are fitted
};

// Softmax attention over some rows, not yet divided by `sum`; acc is [value_dim]. The identity is
// {-inf, 0, zeros}; any state whose max is -inf is one.
struct AttnState {
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0.0f;
  float* acc = nullptr;
};

struct HeadShape {
  std::uint32_t heads = 0;  // query heads that share the KV head
  std::uint32_t key_dim = 0, value_dim = 0;

  bool operator==(const HeadShape&) const = default;
};

// A fold and the query heads that read it.
struct HeadFold {
  Fold fold;
  const float* query = nullptr;  // [heads][key_dim], rotated and scaled
};

// A tile of query rows of one KV head (prefill): rotated, scaled, and *transposed* to
// [key_dim][rows], with rows a multiple of kTileLanes (padding rows: any finite values). The state
// runs on from fold to fold: max and sum are [rows], acc is [value_dim][rows].
inline constexpr int kTileLanes = 32;
struct QueryTile {
  const float* query = nullptr;
  const std::uint32_t* position = nullptr;  // [rows]
  std::size_t rows = 0;
  float* max = nullptr;
  float* sum = nullptr;
  float* acc = nullptr;
};

// Which rows of a fold a tile's queries may see. Rows before every query need no mask.
struct Visibility {
  bool masked = false;               // false: all rows are visible to all queries
  std::uint32_t first_position = 0;  // masked: rank r is at first_position + r
  std::uint32_t window = 0;          // masked: only the last `window` positions; 0: all before
};

struct AttendOps {
  // One fold for the query heads of one KV head: query [heads][key_dim], rotated and scaled.
  // states[h] (h < heads) is overwritten. `next`, or null, is a fold that is likely to be attended
  // next: its rows are asked of memory meanwhile. Nothing of it shows in states.
  void (*attend)(const float* query, HeadShape shape, const Fold& fold, const Fold* next,
                 AttnState* states);
  // into = into (+) from; commutative up to rounding, so callers keep list order.
  void (*merge)(const AttnState& from, std::uint32_t value_dim, AttnState* into);
  // One fold for a tile of queries. scratch: tile_scratch_floats(shape). Queries, keys, values and
  // weights are rounded to tile_type; scores, sums and the softmax are floats.
  GemmType tile_type;
  void (*attend_tile)(const QueryTile& tile, HeadShape shape, const Fold& fold,
                      const Visibility& visible, float* scratch);
};

// K and V of a fold, the queries of a panel of kTileLanes, and their scores.
constexpr std::size_t tile_scratch_floats(HeadShape shape) {
  return std::size_t{kFoldRows} * (shape.key_dim + shape.value_dim + kTileLanes) +
         std::size_t{kTileLanes} * shape.key_dim;
}

// out = acc / sum; zeros when nothing was attended.
void finish(const AttnState& state, std::span<float> out);

}  // namespace thermocline
