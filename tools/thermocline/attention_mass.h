// How much of the attention that a method's own queries would pay to all positions lies on the
// rows that it attends exactly, by layer. Estimates count for nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "runtime/thermocline.h"
#include "tools/thermocline/key_table.h"

namespace thermocline {

// The share of a query's softmax over `count` keys [count][key_dim] that lies on `positions`.
double covered_share(const float* query, std::uint32_t key_dim, const float* keys,
                     std::size_t count, std::span<const std::uint32_t> positions);

class AttentionMass final : public AttendObserver {
 public:
  // `keys` hold every position that is attended by then; borrowed.
  AttentionMass(std::span<const LayerSpec> layers, const KeyTable& keys)
      : layers_(layers), keys_(keys), covered_(layers.size()), lists_(layers.size()) {}

  void attended(const AttendedList& list) override;

  // Of each layer, over steps and query heads; nothing of a layer with a sliding window, which
  // reads all of that.
  std::vector<std::optional<double>> by_layer() const;

 private:
  std::span<const LayerSpec> layers_;
  const KeyTable& keys_;
  std::vector<double> covered_;
  std::vector<std::uint64_t> lists_;
};

}  // namespace thermocline
