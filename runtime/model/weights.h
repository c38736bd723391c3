// A model's weights: matrices as views into the mapped file, vectors as floats of our own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/format/weight.h"

namespace thermocline {

class GgufFile;
struct ModelSpec;

// Vectors that a layer does not have are empty.
struct LayerWeights {
  std::vector<float> attention_norm;          // [width]
  WeightView q, k, v;                         // [heads * dim][width]
  std::vector<float> q_bias, k_bias, v_bias;  // [heads * dim]
  std::vector<float> q_norm, k_norm;          // [key_dim], of every head
  WeightView output;                          // [width][q_heads * value_dim]
  std::vector<float> attention_post_norm;     // [width]
  std::vector<float> feed_forward_norm;       // [width]
  WeightView gate, up;                        // [feed_forward][width]
  WeightView down;                            // [width][feed_forward]
  std::vector<float> feed_forward_post_norm;  // [width]
};

// Immutable; the file must outlive it.
struct Weights {
  WeightView embedding;  // [vocabulary][width]
  WeightView output;     // [vocabulary][width]; the embedding again where the file ties them
  std::vector<float> output_norm;
  std::vector<LayerWeights> layers;

  std::uint64_t parameters = 0, bytes = 0;  // of the tensors used
  std::string types;                        // "Q4_1 210, F32 61"

  // Every tensor that the model needs is there in the shape it needs, and none is there that would
  // change the result and is not used: else not_found, corrupt or unsupported, naming the tensor.
  static Result<Weights> read(const GgufFile& file, const ModelSpec& model);

  std::size_t vocabulary() const { return embedding.rows; }
};

}  // namespace thermocline
