// How a model's positions become angles: the file's frequencies and scaling, and what the user asks
// for instead. In every scaling the angle stays linear in the position, so all of it is one list of
// frequencies (LayerSpec::rope).
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/layer_spec.h"
#include "runtime/thermocline.h"

namespace thermocline {

class GgufFile;

struct RopePlan {
  std::uint32_t dimensions = 0;  // of a head that are rotated
  float freq_base = 10000.0f;
  float freq_scale = 1.0f;  // 0.25: positions are squeezed to a quarter
  bool yarn = false;        // squeezes low frequencies only
  float yarn_beta_fast = 32.0f, yarn_beta_slow = 1.0f, attention_factor = 1.0f;
  std::uint32_t trained_context = 0;  // before any scaling
  std::uint32_t context = 0;          // positions that can be used
  std::vector<float> divisor;         // of each frequency (Llama 3); empty: none

  // `prefix` is the architecture's name. Limits and contradictions are errors that name the key.
  static Result<RopePlan> read(const GgufFile& file, std::string_view prefix, std::uint32_t key_dim,
                               const EngineOptions& options);
  // The frequencies of a layer; those of sliding-window layers have their own base, not squeezed.
  RopeSpec spec(RopePairs pairs) const;
  RopePlan unscaled(float base) const;
};

}  // namespace thermocline
