#include "runtime/model/query_powers.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>

namespace thermocline {

std::vector<std::int8_t> query_powers(const LayerSpec& layer, std::span<const float> q_norm) {
  if (q_norm.empty()) return {};
  std::vector<double> squares;
  for (const float weight : q_norm) squares.push_back(double{weight} * weight);
  for (std::size_t i = 0; i < layer.rope.inverse_frequency.size(); ++i) {
    const auto [one, other] = layer.rope.channels(i);
    squares[one] = squares[other] = (squares[one] + squares[other]) / 2;
  }
  const auto channels = static_cast<double>(squares.size());
  const double mean = std::accumulate(squares.begin(), squares.end(), 0.0) / channels;
  if (!std::isfinite(mean) || mean <= 0.0) return {};
  // A channel that no query has counts as if it had a thirtieth of the others' size: what lies
  // there is kept small, and not lost.
  constexpr double kLeastSquare = 1e-3;
  double middle = 0.0;
  for (double& square : squares) {
    square = std::log2(std::max(square, kLeastSquare * mean)) / 2;
    middle += square / channels;
  }
  std::vector<std::int8_t> powers;
  for (const double log : squares)
    powers.push_back(static_cast<std::int8_t>(
        std::clamp<double>(std::round(log - middle), kLeastQueryPower, kMostQueryPower)));
  if (std::ranges::count(powers, 0) == std::ssize(powers)) return {};
  return powers;
}

}  // namespace thermocline
