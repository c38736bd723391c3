// The dense work of layers on the device: their weights in its memory, as they are coded, and work
// that queues on one stream, as a graph where it comes back.
#pragma once

#include <memory>
#include <vector>

#include "kernels/cuda/device_bytes.h"
#include "kernels/cuda/stream.h"
#include "kernels/device.h"

namespace thermocline::cuda {

class DenseLayers final : public DeviceLayers {
 public:
  // layers_work_bytes() of device `number`'s memory.
  static Result<std::unique_ptr<DenseLayers>> create(std::uint32_t number, const LayersShape& shape,
                                                     std::size_t rows);
  ~DenseLayers() override;

  Status add(const LayerWeights& weights) override;
  Status add(const HeadWeights& weights) override;
  Status write(MatView<const float> hidden) override;
  Status project(std::size_t layer, MatView<float> q, MatView<float> k, MatView<float> v) override;
  Status finish(std::size_t layer, MatView<const float> mixed) override;
  Result<RowsThere> project(std::size_t layer) override;
  Status finish(std::size_t layer) override;
  Status read(MatView<float> hidden) override;
  Status head(MatView<float> logits) override;
  Status wait() override;
  DeviceQueue& queue() override { return stream_; }
  std::uint64_t replays() const override { return stream_.recurring()->replays(); }

 private:
  struct Layer {
    DeviceBytes memory;
    LayerWeights weights;  // in it
  };
  struct Head {
    DeviceBytes memory;
    HeadWeights weights;  // in it, as these
    float* logits = nullptr;
  };

  DenseLayers(std::uint32_t number, const LayersShape& shape, std::size_t rows, Stream stream)
      : number_(number), shape_(shape), most_rows_(rows), stream_(std::move(stream)) {}
  // Copies a matrix, or a vector, to `*next`, which goes on behind it; the view is the copy's then.
  Status copy_weights(WeightView* view, std::byte** next);
  Status copy_weights(std::span<const float>* view, std::byte** next);
  Status copy_there(float* there, MatView<const float> here);
  Status copy_back(MatView<float> here, const float* there);
  // One of q, k and v, from normed_.
  Status project_to(const WeightView& weight, std::span<const float> bias,
                    std::span<const float> head_norm, float* there);
  // hidden += x, after a norm where the layer has one.
  Status add_to_hidden(MatView<float> x, std::span<const float> norm);
  MatView<float> rows_of(float* there, std::size_t cols) const { return {there, rows_, cols}; }

  std::uint32_t number_;
  LayersShape shape_;
  std::size_t most_rows_;
  Stream stream_;
  DeviceBytes memory_;
  float *hidden_ = nullptr, *normed_ = nullptr, *added_ = nullptr;  // [most_rows_][width]
  float *gate_ = nullptr, *up_ = nullptr;                           // [most_rows_][feed_forward]
  float *q_ = nullptr, *k_ = nullptr, *v_ = nullptr, *mixed_ = nullptr;
  std::size_t rows_ = 0;  // of hidden_
  std::vector<Layer> layers_;
  Head head_;  // none where no layer is the last
};

}  // namespace thermocline::cuda
