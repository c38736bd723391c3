#include "tests/support/dense_oracle.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/half.h"

namespace thermocline {

std::vector<double> DenseOracle::rotate(const float* head, std::uint32_t position) const {
  std::vector<double> out(head, head + spec_.key_dim);
  const std::size_t pairs = spec_.rope.inverse_frequency.size();
  for (std::size_t i = 0; i < pairs; ++i) {
    const bool halves = spec_.rope.pairs == RopePairs::halves;
    const std::size_t a = halves ? i : 2 * i, b = halves ? i + pairs : 2 * i + 1;
    const double angle = double(position) * spec_.rope.inverse_frequency[i];
    const double c = std::cos(angle) * spec_.rope.magnitude;
    const double s = std::sin(angle) * spec_.rope.magnitude;
    const double x = out[a], y = out[b];
    out[a] = x * c - y * s;
    out[b] = x * s + y * c;
  }
  return out;
}

void DenseOracle::append(const float* keys, const float* values) {
  for (std::uint32_t h = 0; h < spec_.kv_heads; ++h)
    for (const double x : rotate(keys + h * spec_.key_dim, length_))
      keys_.push_back(to_float(to_f16(static_cast<float>(x))));
  for (std::uint32_t i = 0; i < spec_.kv_heads * spec_.value_dim; ++i)
    values_.push_back(to_float(to_f16(values[i])));
  ++length_;
}

std::vector<double> DenseOracle::attend(const float* queries, std::uint32_t position) const {
  const std::uint32_t group = spec_.q_heads / spec_.kv_heads;
  std::vector<double> out(std::size_t{spec_.q_heads} * spec_.value_dim, 0.0);
  const std::uint32_t first =
      spec_.window > 0 && position + 1 > spec_.window ? position + 1 - spec_.window : 0;
  for (std::uint32_t h = 0; h < spec_.q_heads; ++h) {
    const std::vector<double> q = rotate(queries + h * spec_.key_dim, position);
    const std::uint32_t kv = h / group;
    std::vector<double> score;
    double largest = -1e300, sum = 0;
    for (std::uint32_t p = first; p <= position; ++p) {
      const double* k = &keys_[(std::size_t{p} * spec_.kv_heads + kv) * spec_.key_dim];
      double dot = 0;
      for (std::uint32_t i = 0; i < spec_.key_dim; ++i) dot += q[i] * k[i];
      score.push_back(dot * spec_.scale);
      largest = std::max(largest, score.back());
    }
    for (double& s : score) sum += s = std::exp(s - largest);
    for (std::uint32_t p = first; p <= position; ++p) {
      const double* v = &values_[(std::size_t{p} * spec_.kv_heads + kv) * spec_.value_dim];
      for (std::uint32_t i = 0; i < spec_.value_dim; ++i)
        out[std::size_t{h} * spec_.value_dim + i] += score[p - first] / sum * v[i];
    }
  }
  return out;
}

void DenseOracle::truncate(std::uint32_t length) {
  length_ = length;
  keys_.resize(std::size_t{length} * spec_.kv_heads * spec_.key_dim);
  values_.resize(std::size_t{length} * spec_.kv_heads * spec_.value_dim);
}

std::vector<float> random_rows(std::mt19937& random, std::size_t count, float scale) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> rows(count);
  for (float& x : rows) x = normal(random);
  for (std::size_t i = 0; i < count; i += 997) rows[i] *= 8.0f;
  return rows;
}

}  // namespace thermocline
