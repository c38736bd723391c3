#include "runtime/model/architecture.h"

namespace thermocline {
namespace {

constexpr Architecture kArchitectures[] = {
    {.name = "llama",
     .members = "Llama 2 and 3, Mistral, SmolLM2",
     .pairs = RopePairs::neighbours,
     .biases = Part::optional},
    {.name = "qwen2", .members = "Qwen 2 and 2.5", .biases = Part::required},
    {.name = "qwen3", .members = "Qwen 3", .head_norms = Part::required},
    {.name = "gemma3",
     .members = "Gemma 3",
     .activation = Activation::gelu,
     .head_norms = Part::required,
     .post_norms = Part::required,
     .embedding = Architecture::Embedding::times_sqrt_width,
     .window_period = 6,
     .layers_scaled_by_width = 62},
};

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

const Architecture* find_architecture(std::string_view name) {
  for (const Architecture& a : kArchitectures)
    if (a.name == name) return &a;
  return nullptr;
}

}  // namespace thermocline
