// What a method asked and read in each step of a decode, kept to be studied elsewhere: arrays that
// numpy reads, of the layers that attend everything.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/thermocline.h"
#include "tools/thermocline/key_table.h"
#include "tools/thermocline/new_file.h"

namespace thermocline {

// For a layer N, as two digits: queries_N.npy, f32 [steps][query heads][key_dim], rotated and
// scaled; positions_N.npy, u32: those whose exact rows were read, ascending, list after list;
// ends_N.npy, u64 [steps][KV heads]: where a list ends in positions_N, the next one's beginning.
// coded_N.npy and coded_ends_N.npy: likewise of rows attended by their codes, where any are.
class AttentionRecord final : public AttendObserver {
 public:
  explicit AttentionRecord(std::span<const LayerSpec> layers)
      : layers_(layers), of_layer_(layers.size()) {}

  void attended(const AttendedList& list) override;
  Status write(const NewFolder& folder) const;

 private:
  struct Lists {
    std::vector<std::uint32_t> positions;
    std::vector<std::uint64_t> ends;

    void add(std::span<const std::uint32_t> list) {
      positions.insert(positions.end(), list.begin(), list.end());
      ends.push_back(positions.size());
    }
  };
  struct OfLayer {
    std::vector<float> queries;
    Lists read, coded;
  };
  std::span<const LayerSpec> layers_;
  std::vector<OfLayer> of_layer_;
};

// keys_N.npy, f16 [KV heads][positions][key_dim], rotated, of each such layer.
Status write_keys(const KeyTable& keys, std::span<const LayerSpec> layers, const NewFolder& folder);

// A text's or a method's name as a folder's: what a shell or a path would take amiss becomes '_'.
std::string folder_name(std::string_view name);

}  // namespace thermocline
