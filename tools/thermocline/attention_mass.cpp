#include "tools/thermocline/attention_mass.h"

#include <algorithm>
#include <cmath>

namespace thermocline {
namespace {

// Sums that do not wait for each other.
float dot(const float* one, const float* other, std::uint32_t count) {
  float lanes[16] = {};
  for (std::uint32_t d = 0; d + 16 <= count; d += 16)
    for (std::uint32_t i = 0; i < 16; ++i) lanes[i] += one[d + i] * other[d + i];
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  for (std::uint32_t d = count / 16 * 16; d < count; ++d) sum += one[d] * other[d];
  return sum;
}

}  // namespace

double covered_share(const float* query, std::uint32_t key_dim, const float* keys,
                     std::size_t count, std::span<const std::uint32_t> positions) {
  std::vector<float> mass(count);
  for (std::size_t p = 0; p < count; ++p) mass[p] = dot(query, keys + p * key_dim, key_dim);
  const float max = count == 0 ? 0 : *std::max_element(mass.begin(), mass.end());
  double all = 0, covered = 0;
  for (float& one : mass) all += one = std::exp(one - max);
  for (const std::uint32_t position : positions) covered += mass[position];
  return all > 0 ? covered / all : 1;
}

void AttentionMass::attended(const AttendedList& list) {
  const LayerSpec& layer = layers_[index(list.layer)];
  if (layer.window > 0) return;
  const std::size_t count = std::size_t{list.row.position} + 1;
  TL_CHECK(count <= keys_.length());
  for (const float* query = list.queries.data(); query < list.queries.data() + list.queries.size();
       query += layer.key_dim) {
    covered_[index(list.layer)] += covered_share(
        query, layer.key_dim, keys_.keys(list.layer, list.head), count, list.positions);
    ++lists_[index(list.layer)];
  }
}

std::vector<std::optional<double>> AttentionMass::by_layer() const {
  std::vector<std::optional<double>> shares(layers_.size());
  for (std::size_t l = 0; l < layers_.size(); ++l)
    if (lists_[l] > 0) shares[l] = covered_[l] / static_cast<double>(lists_[l]);
  return shares;
}

}  // namespace thermocline
