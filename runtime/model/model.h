// What a model is, as read from its file's metadata: nothing here touches a weight.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/layer_weights.h"
#include "runtime/layer_spec.h"
#include "runtime/model/architecture.h"
#include "runtime/thermocline.h"

namespace thermocline {

class GgufFile;

// Sizes beyond these are refused: no model comes near, and products of them fit 64 bits.
inline constexpr std::uint32_t kMaxModelWidth = 1u << 18;
inline constexpr std::uint32_t kMaxModelLayers = 1u << 12;

struct ModelSpec {
  const Architecture* architecture = nullptr;  // an entry of the table
  std::string name;
  std::uint32_t width = 0;         // of the hidden state; a multiple of 32
  std::uint32_t feed_forward = 0;  // a multiple of 32
  std::uint32_t context = 0;       // positions, after any scaling asked for
  float norm_epsilon = 0.0f;
  float embedding_scale = 1.0f;
  std::vector<LayerSpec> layers;

  // unsupported: a model that this build cannot run, named with what it can; corrupt or not_found:
  // metadata that is missing or contradicts itself.
  static Result<ModelSpec> read(const GgufFile& file, const EngineOptions& options);

  // f16, over the layers that attend everything.
  std::uint64_t kv_bytes_per_token() const;
  LayersShape shape() const;
};

}  // namespace thermocline
