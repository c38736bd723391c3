// A prefill's attention, of a layer of Llama-3.1-8B's shape: some queries over rows that are all
// resident, by the kernel alone; and over as many that cross from pinned memory a piece at a time,
// from the queries' way over to the results' way back. A few results are checked against plain
// loops, and that where rows lie changes no bit.
#pragma once

#include <cstdint>
#include <span>

#include "tests/bench/cuda/timing.h"

namespace thermocline::cuda {

// Prints a table, a line as it is measured.
Status bench_prefill(Stream& stream, const Limits& limits, std::span<const std::uint32_t> rows,
                     std::uint32_t queries, int rounds);

}  // namespace thermocline::cuda
