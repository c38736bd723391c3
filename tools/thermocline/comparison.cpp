#include "tools/thermocline/comparison.h"

#include <algorithm>

namespace thermocline {

std::uint64_t bytes_held(std::span<const LayerSpec> layers, std::uint32_t positions) {
  std::uint64_t bytes = 0;
  for (const LayerSpec& layer : layers) {
    const std::uint32_t rows = layer.window > 0 ? std::min(positions, layer.window) : positions;
    bytes += std::uint64_t{rows} * layer.kv_heads * (layer.key_dim + layer.value_dim) * 2;
  }
  return bytes;
}

Result<Comparison> compare(const Passage& passage, std::span<const LayerSpec> layers,
                           MeasuredRun* full, MeasuredRun* other, ProgressStyle style,
                           KeyTable* keys) {
  Comparison comparison;
  const CacheReport before = other->cache().report();
  Progress progress(style, other->label(), passage.steps);
  for (std::uint32_t i = 0; i < passage.steps; ++i) {
    TL_TRY(full->step(passage.token(i)));
    if (keys) TL_TRY(keys->read_on(full->cache(), full->timeline()));
    TL_TRY(other->step(passage.token(i)));
    comparison.steps.push_back(compare_logits(full->logits(), other->logits(), passage.next(i)));
    comparison.held_bytes += bytes_held(layers, passage.depth + i + 1);
    progress.update(i + 1);
  }
  comparison.cost = difference(other->cache().report(), before);
  comparison.ranks = other->cache().ranks(other->timeline());
  comparison.step_ms = other->step_ms();
  comparison.full_ms = full->step_ms();
  return comparison;
}

}  // namespace thermocline
