// The two ends of a layer's attention in a decode step, of rows that are on the device: queries and
// keys are turned to their positions, and keys and values become records; and what was attended, in
// two parts, becomes what the layer goes on with.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attend.h"
#include "kernels/cuda/attend.h"
#include "kernels/cuda/stream.h"

namespace thermocline::cuda {

// One row of a step: its angles, and where the device keeps it.
struct TurnedRow {
  const float *cosine = nullptr, *sine = nullptr;  // [pairs]
  std::byte* record = nullptr;                     // of KV head 0
  std::uint64_t head_apart = 0;                    // bytes to the next head's
};

// All of it in memory that the device reaches.
struct TurnedLayer {
  HeadShape head;
  std::uint32_t kv_heads = 0, rows = 0, pairs = 0;
  std::uint32_t halves = 1;                              // RopePairs::halves; 0: neighbours
  float scale = 1.0f;                                    // of queries
  const float *key_by = nullptr, *query_by = nullptr;    // [key_dim], by channel; null: ones
  const float *q = nullptr, *k = nullptr, *v = nullptr;  // [rows][heads * dim]
  const TurnedRow* row = nullptr;                        // [rows]
  float* query = nullptr;        // [rows][q heads][key_dim]: rotated and scaled
  std::byte* records = nullptr;  // [rows][kv_heads]: f16 keys, rotated, and values
};

// Fills `query`, `records` and each row's own record. Only queues, as mix() does.
Status turn(Stream& stream, const TurnedLayer& layer);

// Of list i and its query head h: out[i][h][value_dim] = finish(first state (+) second one), of
// which there is none where `chosen` [lists] has kNoState for the list, else that number.
inline constexpr std::uint32_t kNoState = ~std::uint32_t{0};
Status mix(Stream& stream, HeadShape shape, std::uint32_t lists, States first, States second,
           const std::uint32_t* chosen, float* out);

}  // namespace thermocline::cuda
