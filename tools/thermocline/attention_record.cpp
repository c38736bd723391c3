#include "tools/thermocline/attention_record.h"

#include "tools/thermocline/npy.h"

namespace thermocline {
namespace {

std::string file_of(const NewFolder& folder, const char* what, std::size_t layer) {
  return folder.file(std::string(what) + (layer < 10 ? "_0" : "_") + std::to_string(layer) +
                     ".npy");
}

}  // namespace

void AttentionRecord::attended(const AttendedList& list) {
  if (layers_[index(list.layer)].window > 0) return;
  OfLayer& layer = of_layer_[index(list.layer)];
  layer.queries.insert(layer.queries.end(), list.queries.begin(), list.queries.end());
  layer.read.add(list.positions);
  layer.coded.add(list.coded);
}

Status AttentionRecord::write(const NewFolder& folder) const {
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    const LayerSpec& spec = layers_[l];
    const OfLayer& layer = of_layer_[l];
    if (spec.window > 0) continue;
    const std::uint64_t steps = layer.read.ends.size() / spec.kv_heads;
    const std::uint64_t queries[] = {steps, spec.q_heads, spec.key_dim};
    const std::uint64_t ends[] = {steps, spec.kv_heads};
    const auto write_lists = [&](const char* positions, const char* of_ends,
                                 const Lists& lists) -> Status {
      const std::uint64_t all[] = {lists.positions.size()};
      TL_TRY(write_npy(file_of(folder, positions, l), all, lists.positions));
      return write_npy(file_of(folder, of_ends, l), ends, lists.ends);
    };
    TL_TRY(write_npy(file_of(folder, "queries", l), queries, layer.queries));
    TL_TRY(write_lists("positions", "ends", layer.read));
    if (!layer.coded.positions.empty()) TL_TRY(write_lists("coded", "coded_ends", layer.coded));
  }
  return {};
}

Status write_keys(const KeyTable& keys, std::span<const LayerSpec> layers,
                  const NewFolder& folder) {
  for (std::uint32_t l = 0; l < layers.size(); ++l) {
    const LayerSpec& spec = layers[l];
    if (spec.window > 0) continue;
    const std::size_t of_head = std::size_t{keys.length()} * spec.key_dim;
    std::vector<f16> halves;
    halves.reserve(spec.kv_heads * of_head);
    // A cache's raw rows are f16: nothing is rounded here.
    for (std::uint32_t h = 0; h < spec.kv_heads; ++h)
      for (std::size_t i = 0; i < of_head; ++i)
        halves.push_back(to_f16(keys.keys(LayerId{l}, h)[i]));
    const std::uint64_t shape[] = {spec.kv_heads, keys.length(), spec.key_dim};
    TL_TRY(write_npy(file_of(folder, "keys", l), shape, halves));
  }
  return {};
}

std::string folder_name(std::string_view name) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._=-";
  std::string out;
  for (const char c : name) out += kPlain.find(c) == std::string_view::npos ? '_' : c;
  return out.empty() || out.front() == '.' ? "_" + out : out;
}

}  // namespace thermocline
