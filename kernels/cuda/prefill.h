// Attention of many queries on the device: tiles of them meet rows a block at a time, products are
// the tensor cores', and a tile's states run on from block to block and from launch to launch.
#pragma once

#include <cstdint>

#include "kernels/cuda/stream.h"
#include "kernels/device_prefill.h"

namespace thermocline::cuda {

// Queries of a KV head are numbered token by token, the query heads of the group side by side: a
// tile is so many of them.
inline constexpr std::uint32_t kPrefillTile = 64;

constexpr std::uint32_t tiles_of(const PrefillShape& shape) {
  return static_cast<std::uint32_t>(
      (std::uint64_t{shape.rows} * shape.head.heads + kPrefillTile - 1) / kPrefillTile);
}

// In device memory: max and sum are [KV head][tile][query], acc is [KV head][tile][query]
// [value_dim]. What they count in is the kernels' own.
struct PrefillStates {
  float* max = nullptr;
  float* sum = nullptr;
  float* acc = nullptr;
};

// A launch: which stretches each KV head reads, and which tiles see any of them.
struct PrefillLaunch {
  StretchFormat format;
  const RowStretch* stretches = nullptr;         // in device memory, as are their rows
  const std::uint32_t* first_of_head = nullptr;  // likewise, [KV heads + 1]
  std::uint32_t first_tile = 0, last_tile = 0;   // behind the last
};

// All only queue. Shapes and formats are those that can_attend() takes.
//
// States that have seen nothing.
Status clear_states(Stream& stream, const PrefillShape& shape, PrefillStates states);

// `queries` [rows][q_heads] as PrefillShape has them, aligned to 16 bytes. Operands are rounded to
// f16, which those of f16 rows are; weights by 11 bits, and they are summed as they are multiplied.
Status attend_tiles(Stream& stream, const PrefillShape& shape, const std::byte* queries,
                    const PrefillLaunch& launch, PrefillStates states);

// Of so many rows: out [rows][q_heads * value_dim], in memory that the device reaches.
Status finish_rows(Stream& stream, const PrefillShape& shape, PrefillStates states,
                   std::uint32_t first, std::uint32_t rows, float* out);

}  // namespace thermocline::cuda
