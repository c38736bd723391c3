// What `sketch` would read while a model decodes a real text: the rows that it picks at each step
// in each layer and KV head, and what was known of them before. The model itself attends
// everything, so the trajectory is that of full attention; the text is given, not sampled.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline::test {

struct TraceOptions {
  std::string model, text;    // paths
  std::uint32_t context = 0;  // tokens before the first step; 0: all but those of the steps
  std::uint32_t prompt = 64;  // how many of the last prompt positions are traced as well
  std::uint32_t steps = 64;
};

// Of one layer and KV head. Rows are numbered as they are stored.
struct HeadTrace {
  struct Step {
    std::vector<std::uint32_t> picked;  // ascending
    // What guessed queries of the layer pick: made of the hidden state before the layer below it,
    // and of that after its attention, before its feed-forward part. Empty in the first layer.
    std::vector<std::uint32_t> guessed_before, guessed_between;
    // The rows with most attention, and their shares of it summed over the query heads.
    std::vector<std::uint32_t> heaviest;
    std::vector<float> mass;
  };
  std::vector<Step> prompt, steps;  // of the prompt: `picked` alone
};

struct SelectionTrace {
  std::uint32_t layers = 0, heads = 0;  // KV heads a layer
  std::uint32_t rows = 0;               // a head: sealed before the first step
  std::vector<HeadTrace> of;            // [layer][head]
};

Result<SelectionTrace> trace_selections(const TraceOptions& options);

}  // namespace thermocline::test
