// What a layer's dense work reads, and over rows of which shape.
#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "kernels/base/activation.h"
#include "kernels/format/weight.h"

namespace thermocline {

// Matrices as they are coded, vectors as floats; those that a layer does not have are empty. A
// view: of what lies in a model's file or on a device.
struct LayerWeights {
  std::span<const float> attention_norm;          // [width]
  WeightView q, k, v;                             // [heads * dim][width]
  std::span<const float> q_bias, k_bias, v_bias;  // [heads * dim]
  std::span<const float> q_norm, k_norm;          // [key_dim], of every head
  WeightView output;                              // [width][q_heads * value_dim]
  std::span<const float> attention_post_norm;     // [width]
  std::span<const float> feed_forward_norm;       // [width]
  WeightView gate, up;                            // [feed_forward][width]
  WeightView down;                                // [width][feed_forward]
  std::span<const float> feed_forward_post_norm;  // [width]
};

// All of them, for whoever copies or counts them.
inline constexpr std::array kLayerMatrices{
    &LayerWeights::q,    &LayerWeights::k,  &LayerWeights::v,    &LayerWeights::output,
    &LayerWeights::gate, &LayerWeights::up, &LayerWeights::down,
};
inline constexpr std::array kLayerVectors{
    &LayerWeights::attention_norm,
    &LayerWeights::q_bias,
    &LayerWeights::k_bias,
    &LayerWeights::v_bias,
    &LayerWeights::q_norm,
    &LayerWeights::k_norm,
    &LayerWeights::attention_post_norm,
    &LayerWeights::feed_forward_norm,
    &LayerWeights::feed_forward_post_norm,
};

// And what logits are made with, after the last of them.
struct HeadWeights {
  std::span<const float> norm;  // [width]
  WeightView output;            // [vocabulary][width]
};

// What the layers of a model have in common, and how many columns the rows of the widest have.
struct LayersShape {
  std::size_t width = 0, feed_forward = 0;
  std::size_t q = 0, k = 0, v = 0, mixed = 0;
  float norm_epsilon = 0.0f;
  Activation activation = Activation::silu;
};

}  // namespace thermocline
