// What a handful of repeated measurements say.
#pragma once

#include <vector>

namespace thermocline {

struct Spread {
  double median = 0, lowest = 0, highest = 0;
};
// All zero where there is nothing.
Spread spread_of(std::vector<double> values);

// The value below which this share of the values lies (nearest rank); 0 where there is nothing.
double percentile(std::vector<double> values, double share);
double mean_of(const std::vector<double>& values);

}  // namespace thermocline
