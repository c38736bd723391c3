#include "runtime/layers_on_device.h"

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include "tiers/size_text.h"
#include "tiers/store/device_memory.h"

namespace thermocline {

Result<std::unique_ptr<Device>> open_layers_device(const EngineOptions& options) {
  if (options.device_layers == 0) return std::unique_ptr<Device>();
  const std::optional<std::uint32_t> number = device_number(options.device);
  if (!number)
    return fail(ErrorCode::invalid_argument, "EngineOptions::device '", options.device,
                "' computes no layers (known: cuda, cuda:N)");
  Result<std::unique_ptr<Device>> device = open_device(*number);
  if (!device)
    return fail(device.error().code, "no device for --gpu-layers: ", device.error().message);
  return device;
}

Result<LayersOnDevice> LayersOnDevice::create(std::unique_ptr<Device> device,
                                              const ModelSpec& model, const Weights& weights,
                                              std::uint32_t count, std::size_t rows,
                                              Budget* ledger) {
  const auto all = static_cast<std::uint32_t>(weights.layers.size());
  LayersOnDevice made;
  made.has_head_ = count > all;
  count = std::min(count, all);
  made.first_ = LayerId{all - count};
  const HeadWeights head{weights.output_norm, weights.output};
  const auto copied = std::span(weights.layers).last(count);
  std::uint64_t bytes = 0;
  for (const LayerWeights& layer : copied) {
    bytes += layer_bytes(layer);
    for (const auto matrix : kLayerMatrices) made.file_bytes_ += (layer.*matrix).bytes();
  }
  const LayersShape shape = model.shape();
  std::uint64_t work_bytes = layers_work_bytes(shape, rows);
  if (made.has_head_) {
    bytes += head_bytes(head);
    work_bytes += logits_bytes(head);
    // The host looks tokens up in what is tied.
    if (head.output.data != weights.embedding.data) made.file_bytes_ += head.output.bytes();
  }
  const std::string name = device->name();
  const auto too_few = [&](const auto&... what) {
    return fail(ErrorCode::exhausted, name, ": ", count, " of ", all, " layers",
                made.has_head_ ? " and the head need " : " need ", size_text(bytes),
                " of its memory and ", size_text(work_bytes), " to compute in, ", what...);
  };
  TL_TRY_ASSIGN(const std::uint64_t free, device->free_bytes());
  if (bytes + work_bytes > free)
    return too_few("it has ", size_text(free), " free: lower --gpu-layers");
  const std::uint64_t left = ledger->usage(Tier::device).free_bytes();
  if (bytes + work_bytes > left)
    return too_few(limit_of(Tier::device), " leaves ", size_text(left),
                   ": raise it, or lower --gpu-layers");
  TL_TRY_ASSIGN(made.weight_bytes_, ledger->reserve(Tier::device, Purpose::weights, bytes));
  TL_TRY_ASSIGN(made.activation_bytes_,
                ledger->reserve(Tier::device, Purpose::activations, work_bytes));
  made.device_ = std::move(device);
  // Memory is given out in pieces larger than what is asked for.
  const auto said = [&](const Status& status) -> Status {
    if (status || status.error().code != ErrorCode::exhausted) return status;
    return too_few("more than its ", size_text(free), " free give: lower --gpu-layers");
  };
  Result<std::unique_ptr<DeviceLayers>> layers = made.device_->open_layers(shape, rows);
  if (!layers) TL_TRY(said(tl::unexpected(layers.error())));
  made.layers_ = *std::move(layers);
  for (const LayerWeights& layer : copied) TL_TRY(said(made.layers_->add(layer)));
  if (made.has_head_) TL_TRY(said(made.layers_->add(head)));
  return made;
}

}  // namespace thermocline
