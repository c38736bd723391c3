#include "tools/thermocline/key_table.h"

#include <algorithm>

namespace thermocline {

KeyTable::KeyTable(std::span<const LayerSpec> layers) : layers_(layers), keys_(layers.size()) {
  for (std::size_t l = 0; l < layers.size(); ++l)
    if (layers[l].window == 0) keys_[l].resize(layers[l].kv_heads);
}

Status KeyTable::read_on(KvCache& cache, const Timeline& timeline) {
  constexpr std::uint32_t kPiece = 4096;  // positions: what is read passes through a small buffer
  std::vector<float> keys, values;
  for (std::uint32_t l = 0; l < layers_.size(); ++l) {
    const LayerSpec& spec = layers_[l];
    if (spec.window > 0) continue;
    const std::size_t key_floats = std::size_t{spec.kv_heads} * spec.key_dim;
    const std::size_t value_floats = std::size_t{spec.kv_heads} * spec.value_dim;
    for (std::uint32_t first = length_; first < timeline.length(); first += kPiece) {
      const std::size_t rows = std::min(kPiece, timeline.length() - first);
      keys.resize(rows * key_floats);
      values.resize(rows * value_floats);
      TL_TRY(cache.read(timeline, LayerId{l}, first, {keys.data(), rows, key_floats},
                        {values.data(), rows, value_floats}));
      for (std::uint32_t h = 0; h < spec.kv_heads; ++h)
        for (std::size_t r = 0; r < rows; ++r) {
          const auto row = keys.begin() + static_cast<std::ptrdiff_t>(r * key_floats) +
                           std::ptrdiff_t{h} * spec.key_dim;
          keys_[l][h].insert(keys_[l][h].end(), row, row + spec.key_dim);
        }
    }
  }
  length_ = std::max(length_, timeline.length());
  return {};
}

void KeyTable::cut(std::uint32_t length) {
  length_ = std::min(length_, length);
  for (std::size_t l = 0; l < layers_.size(); ++l)
    for (std::vector<float>& head : keys_[l])
      head.resize(std::size_t{length_} * layers_[l].key_dim);
}

}  // namespace thermocline
