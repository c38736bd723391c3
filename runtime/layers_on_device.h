// The layers of a model that a device computes: the last ones, whole; and after all of them maybe
// the logits. Their weights are there.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/base/error.h"
#include "kernels/base/ids.h"
#include "kernels/device.h"
#include "runtime/model/model.h"
#include "runtime/model/weights.h"
#include "runtime/thermocline.h"
#include "tiers/budget.h"

namespace thermocline {

// The device that is to compute layers; null where none is to. invalid_argument: a name that means
// no device; else as open_device().
Result<std::unique_ptr<Device>> open_layers_device(const EngineOptions& options);

class LayersOnDevice {
 public:
  // Copies the weights of the last `count` layers, of all and the head where there are fewer, to be
  // computed for at most `rows` rows at a time. What that takes is of `ledger`, which outlives it.
  // exhausted: what is needed, what there is, what to change.
  static Result<LayersOnDevice> create(std::unique_ptr<Device> device, const ModelSpec& model,
                                       const Weights& weights, std::uint32_t count,
                                       std::size_t rows, Budget* ledger);

  DeviceLayers& layers() const { return *layers_; }
  LayerId first() const { return first_; }
  bool has_head() const { return has_head_; }
  const std::string& device() const { return device_->name(); }
  std::uint32_t device_number() const { return device_->number(); }
  // What they take there, and what of the file nobody reads any more.
  std::uint64_t weight_bytes() const { return weight_bytes_.bytes(); }
  std::uint64_t activation_bytes() const { return activation_bytes_.bytes(); }
  std::uint64_t file_bytes() const { return file_bytes_; }

 private:
  LayersOnDevice() = default;

  std::unique_ptr<Device> device_;
  Reservation weight_bytes_, activation_bytes_;
  std::unique_ptr<DeviceLayers> layers_;
  LayerId first_{0};
  bool has_head_ = false;
  std::uint64_t file_bytes_ = 0;
};

}  // namespace thermocline
