// The keys of a timeline's full-attention layers in position order, beside its cache: what studies
// compute exact attention from.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/thermocline.h"

namespace thermocline {

class KeyTable {
 public:
  explicit KeyTable(std::span<const LayerSpec> layers);

  // Takes what `timeline` holds beyond the positions that are here.
  Status read_on(KvCache& cache, const Timeline& timeline);
  // Forgets positions from `length` on.
  void cut(std::uint32_t length);

  std::uint32_t length() const { return length_; }
  // [length][key_dim], rotated.
  const float* keys(LayerId layer, std::uint32_t head) const {
    return keys_[index(layer)][head].data();
  }

 private:
  std::span<const LayerSpec> layers_;
  std::uint32_t length_ = 0;
  std::vector<std::vector<std::vector<float>>> keys_;  // [layer][KV head]; none of a window's
};

}  // namespace thermocline
