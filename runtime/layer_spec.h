// What is true of one attention layer: the cache needs no more of a model than a list of these.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/base/head_size.h"
#include "kernels/base/rope_pairs.h"

namespace thermocline {

// Layers beyond these are refused: attention keeps a row of one head on its stack.
inline constexpr std::uint32_t kMaxHeads = 1024;
// Keys are f16, and eight times as large have room for up to 8,188: what is more is kept as that.
inline constexpr int kLeastQueryPower = -8, kMostQueryPower = 3;

// Rotary position embedding. Angle of pair i at position p: p * inverse_frequency[i].
struct RopeSpec {
  RopePairs pairs = RopePairs::halves;
  std::vector<float> inverse_frequency;  // [rotated size / 2]; empty: keys carry no position
  float magnitude = 1.0f;                // cos and sin times this (YaRN)

  // Which two channels of a head pair i is.
  std::pair<std::size_t, std::size_t> channels(std::size_t i) const {
    if (pairs == RopePairs::neighbours) return {2 * i, 2 * i + 1};
    return {i, i + inverse_frequency.size()};
  }
  bool operator==(const RopeSpec&) const = default;
};

struct LayerSpec {
  std::uint32_t q_heads = 0, kv_heads = 0;   // q_heads is a multiple of kv_heads (GQA)
  std::uint32_t key_dim = 0, value_dim = 0;  // per head, multiples of 16
  std::uint32_t window = 0;                  // sliding window in positions; 0: attends everything
  float scale = 1.0f;                        // of q . k
  RopeSpec rope = {};
  // [key_dim]: about how large queries are in each channel, as powers of two, for methods that keep
  // keys so (runtime/key_balance.h). Alike in channels that the rotation turns together,
  // kLeastQueryPower to kMostQueryPower. Empty: not known, or all alike.
  std::vector<std::int8_t> query_powers = {};
  bool operator==(const LayerSpec&) const = default;
};

}  // namespace thermocline
