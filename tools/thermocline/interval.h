// How far a measured mean may be from the true one, at 95 %.
#pragma once

#include <cstddef>
#include <span>

namespace thermocline {

struct Interval {
  double low = 0, high = 0;
};

// Of a mean, by the percentiles of 2,000 resamplings, from one seed: the same values give the same
// interval. Takes the values as independent, which the steps of one text are not quite.
Interval bootstrap_of_mean(std::span<const double> values);

// Of a share, `hits` of `count`, after Wilson: holds for few and at the ends, where the usual
// formula does not. 0 to 1 of nothing.
Interval wilson(std::size_t hits, std::size_t count);

}  // namespace thermocline
