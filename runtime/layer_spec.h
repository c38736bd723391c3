// What is true of one attention layer: the cache needs no more of a model than a list of these.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/head_size.h"
#include "kernels/base/rope_pairs.h"

namespace thermocline {

// Layers beyond these are refused: attention keeps a row of one head on its stack.
inline constexpr std::uint32_t kMaxHeads = 1024;

// Rotary position embedding. Angle of pair i at position p: p * inverse_frequency[i].
struct RopeSpec {
  RopePairs pairs = RopePairs::halves;
  std::vector<float> inverse_frequency;  // [rotated size / 2]; empty: keys carry no position
  float magnitude = 1.0f;                // cos and sin times this (YaRN)
  bool operator==(const RopeSpec&) const = default;
};

struct LayerSpec {
  std::uint32_t q_heads = 0, kv_heads = 0;   // q_heads is a multiple of kv_heads (GQA)
  std::uint32_t key_dim = 0, value_dim = 0;  // per head, multiples of 16
  std::uint32_t window = 0;                  // sliding window in positions; 0: attends everything
  float scale = 1.0f;                        // of q . k
  RopeSpec rope;
  bool operator==(const LayerSpec&) const = default;
};

}  // namespace thermocline
