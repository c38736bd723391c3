// A whole decode step as the runtime has it: layers of Llama-3.1-8B's shape, with random weights in
// bf16, whose rows stay on the device from the hidden state to the logits; over rows that all are
// read, and over those of the best chunks by their landmarks. What launches cost beside the work of
// the kernels shows here alone: a step is timed by the host's clock, queued kernel by kernel and as
// the graph that it becomes.
#pragma once

#include <cstdint>
#include <span>

#include "tests/bench/cuda/timing.h"

namespace thermocline::cuda {

// `width`: of the hidden state, a multiple of 512, and with it heads and the feed-forward part. A
// layer's rows are those of all: they are larger than caches. Prints a table.
Status bench_step(const Limits& limits, std::span<const std::uint32_t> rows, std::uint32_t width,
                  std::uint32_t layers, int rounds);

}  // namespace thermocline::cuda
