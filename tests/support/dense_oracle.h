// Full attention in plain double-precision loops over everything that was appended: what a KvCache
// must give under a method that reads everything.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/base/view.h"
#include "runtime/layer_spec.h"

namespace thermocline {

// One timeline's rows in one layer. Keys and values are rounded to f16 as the cache rounds them.
class DenseOracle {
 public:
  explicit DenseOracle(const LayerSpec& spec) : spec_(spec) {}

  // One row: keys [kv_heads * key_dim], not rotated; values [kv_heads * value_dim].
  void append(const float* keys, const float* values);
  // queries [q_heads * key_dim] of the row at `position` -> [q_heads * value_dim].
  std::vector<double> attend(const float* queries, std::uint32_t position) const;
  void truncate(std::uint32_t length);
  std::uint32_t length() const { return length_; }

 private:
  std::vector<double> rotate(const float* head, std::uint32_t position) const;

  LayerSpec spec_;
  std::uint32_t length_ = 0;
  std::vector<double> keys_, values_;
};

// Seeded rows with a few planted outliers.
std::vector<float> random_rows(std::mt19937& random, std::size_t count, float scale = 1.0f);

}  // namespace thermocline
