// A model's weights: matrices as views into the mapped file, vectors as floats of our own.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/format/weight.h"
#include "kernels/layer_weights.h"

namespace thermocline {

class GgufFile;
struct ModelSpec;

// Immutable; the file must outlive it. Moved and never copied: it has what its vectors view.
struct Weights {
  Weights() = default;
  Weights(Weights&&) noexcept = default;
  Weights& operator=(Weights&&) noexcept = default;

  WeightView embedding;  // [vocabulary][width]
  WeightView output;     // [vocabulary][width]; the embedding again where the file ties them
  std::span<const float> output_norm;
  std::vector<LayerWeights> layers;
  std::vector<std::vector<float>> vectors;

  std::uint64_t parameters = 0, bytes = 0;  // of the tensors used
  std::string types;                        // "Q4_1 210, F32 61"

  // Every tensor that the model needs is there in the shape it needs, and none is there that would
  // change the result and is not used: else not_found, corrupt or unsupported, naming the tensor.
  static Result<Weights> read(const GgufFile& file, const ModelSpec& model);

  std::size_t vocabulary() const { return embedding.rows; }
};

}  // namespace thermocline
