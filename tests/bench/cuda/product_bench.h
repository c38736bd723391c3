// Coded weights times rows of floats, in the shapes of a layer of Llama-3.1-8B: of few rows, where
// reading the weights is the floor, and of many. Every product is checked against plain loops.
#pragma once

#include <cstdint>
#include <span>

#include "tests/bench/cuda/timing.h"

namespace thermocline::cuda {

// Of a model of so many channels, a multiple of 512, for each number of rows. Prints a table, a
// line as it is measured.
Status bench_products(Stream& stream, const Limits& limits, std::uint32_t width,
                      std::span<const std::uint32_t> vectors, int rounds);

}  // namespace thermocline::cuda
