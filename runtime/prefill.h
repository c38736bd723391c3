// Reading a long text: span -> layer -> chunk. A layer runs over a whole span before the next one
// starts, so weights are touched once a span and the cache gets all of a layer's keys, values and
// queries at once; the dense work goes chunk by chunk. Spans and chunks lie on a fixed grid of
// positions: no answer depends on how much memory there is.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/cache_plan.h"
#include "runtime/step.h"
#include "runtime/thermocline.h"

namespace thermocline {

inline constexpr std::uint32_t kChunkPositions = 512;

// What prefill works in; grows to the longest span that it has seen, at most kSpanRows.
struct PrefillMemory {
  RowState rows;
  LayerScratch scratch;
  std::vector<Token> at;
  Buffer logits;  // of `all_logits`

  // What spans of so many rows take, without `all_logits`; what was taken.
  static std::uint64_t bytes_for(const Model& model, std::size_t rows);
  std::uint64_t bytes() const;
};

// As Engine::prefill. Tokens are below the vocabulary's size, and at least one.
Status prefill(const Model& model, Timeline& timeline, std::span<const int> tokens,
               std::span<float> logits, const PrefillOptions& options, PrefillMemory* memory);

}  // namespace thermocline
