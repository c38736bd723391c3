// Decode attention, a layer of Llama-3.1-8B's shape at a time: all rows resident, and rows chosen
// by their sketch, or by landmarks with keys at low rank, which lie on the device or in pinned
// memory behind a cache.
//
// Keys and values are random, so nothing that is read says which rows a next step asks for: the hit
// rate is an axis. Before each measurement that share of the chosen rows is in the cache, to the
// row. Every run checks that where rows lie changes no bit of the answer.
#pragma once

#include <cstdint>
#include <span>

#include "tests/bench/cuda/timing.h"

namespace thermocline::cuda {

// A segment: numbers of rows are multiples of it.
inline constexpr std::uint32_t kRunRows = 8192;

// Prints a table, a line as it is measured.
Status bench_attention(Stream& stream, const Limits& limits, std::span<const std::uint32_t> rows,
                       std::span<const std::uint32_t> batches, int rounds);

}  // namespace thermocline::cuda
