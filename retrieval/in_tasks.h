// Loops that are cut alike on any number of threads.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/base/workers.h"

namespace thermocline {

// body(first, last) over [0, count), cut at multiples of `unit`.
template <typename Body>
void in_tasks(std::size_t count, std::size_t unit, const Workers& workers, const Body& body) {
  workers.parallel((count + unit - 1) / unit, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t t = first; t < last; ++t) body(t * unit, std::min((t + 1) * unit, count));
  });
}

}  // namespace thermocline
