#include "retrieval/index/link_pruner.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace thermocline {

LinkPruner::LinkPruner(const KeyRows& keys, const CpuTable& cpu)
    : keys_(keys), cpu_(cpu), half_square_(keys.count) {
  std::vector<float> key(keys.dim);
  for (std::size_t k = 0; k < keys.count; ++k) {
    cpu_.dense.from_half(keys.row(k), keys.dim, key.data());
    for (const float x : key) half_square_[k] += 0.5f * x * x;
  }
}

// Copies the rows of `near` beside each other: they are read once for each that is taken.
void LinkPruner::gather(Scratch* scratch) const {
  scratch->rows.resize(scratch->near.size() * keys_.dim);
  scratch->half_square.resize(scratch->near.size());
  for (std::size_t i = 0; i < scratch->near.size(); ++i) {
    const std::uint32_t other = scratch->near[i].second;
    std::copy_n(keys_.row(other), keys_.dim, scratch->rows.data() + i * keys_.dim);
    scratch->half_square[i] = half_square_[other];
  }
}

void LinkPruner::score_from(std::uint32_t k, Scratch* scratch) const {
  scratch->key.resize(keys_.dim);
  scratch->score.resize(scratch->near.size());
  cpu_.dense.from_half(keys_.row(k), keys_.dim, scratch->key.data());
  cpu_.sketch.dot_rows(RowFormat::f16, reinterpret_cast<const std::byte*>(scratch->rows.data()),
                       keys_.dim * sizeof(f16), scratch->near.size(), keys_.dim,
                       scratch->key.data(), 1, scratch->score.data(), scratch->near.size());
}

std::size_t LinkPruner::prune(std::uint32_t k, std::span<const std::uint32_t> candidates,
                              std::size_t wanted, Scratch* scratch, std::uint32_t* taken) const {
  // Half the square of a distance is |a|^2 / 2 + |b|^2 / 2 - a . b.
  auto& near = scratch->near;
  near.clear();
  for (const std::uint32_t other : candidates) near.emplace_back(0.0f, other);
  gather(scratch);
  score_from(k, scratch);
  for (std::size_t i = 0; i < near.size(); ++i) {
    const float distance = half_square_[k] + scratch->half_square[i] - scratch->score[i];
    near[i].first = std::isfinite(distance) ? distance : std::numeric_limits<float>::max();
  }
  std::sort(near.begin(), near.end());
  gather(scratch);
  scratch->hidden.assign(near.size(), 0);
  std::size_t found = 0;
  for (std::size_t i = 0; i < near.size() && found < wanted; ++i) {
    if (scratch->hidden[i]) continue;
    taken[found++] = near[i].second;
    score_from(near[i].second, scratch);
    for (std::size_t j = i + 1; j < near.size(); ++j)
      scratch->hidden[j] |=
          scratch->half_square[i] + scratch->half_square[j] - scratch->score[j] < near[j].first;
  }
  for (std::size_t i = 0; i < near.size() && found < wanted; ++i)
    if (scratch->hidden[i]) taken[found++] = near[i].second;
  return found;
}

}  // namespace thermocline
