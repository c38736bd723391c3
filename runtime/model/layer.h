// The dense work of a forward pass on rows of hidden state: one layer function for every
// architecture, and for one row as for many.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/base/ids.h"
#include "kernels/base/view.h"
#include "kernels/device.h"
#include "runtime/model/model.h"
#include "runtime/model/product.h"
#include "runtime/model/weights.h"

namespace thermocline {

// A model on this machine. Borrowed, immutable.
struct Model {
  const ModelSpec* spec = nullptr;
  const Weights* weights = nullptr;
  Machine machine;
  // Has the layers from the first of these on, as its layer 0, and maybe the head; null: the host
  // has all.
  DeviceLayers* device = nullptr;
  LayerId first_on_device{0};
  bool head_on_device = false;

  const LayerSpec& layer(LayerId l) const { return spec->layers[index(l)]; }
};

// What attention takes of some rows: q and k without rotary embedding.
struct Projection {
  MatView<float> q, k, v;  // [rows][heads * dim]
};

// Work memory for at most `rows` rows at a time; allocated once.
class LayerScratch {
 public:
  static Result<LayerScratch> create(const Model& model, std::size_t rows);
  // What that takes; what this one has taken.
  static std::uint64_t bytes_for(const Model& model, std::size_t rows);
  std::uint64_t bytes() const { return memory_.size() + products_.bytes(); }
  std::size_t rows() const { return rows_; }

 private:
  friend class LayerWork;
  std::size_t rows_ = 0;
  Buffer memory_;
  MatView<float> normed_, added_, gate_, up_;
  ProductScratch products_;
};

// The calls of a pass, in order: embed, then project and finish for each layer, then head. Each
// takes at most scratch.rows() rows; one thread at a time.
//
// Hidden rows that a device has worked on are there, and come back when other rows take their place
// or for the head: so those of a step cross once each way, however many layers a device has.
class LayerWork {
 public:
  LayerWork(const Model& model, LayerScratch* scratch) : model_(model), scratch_(*scratch) {}
  LayerWork(const LayerWork&) = delete;
  LayerWork& operator=(const LayerWork&) = delete;
  ~LayerWork();  // what a device was to read of the rows has been read

  // Tokens are below the vocabulary's size.
  void embed(std::span<const int> tokens, MatView<float> hidden);
  Status project(LayerId l, MatView<float> hidden, const Projection& out);
  // mixed [rows][q_heads * value_dim]: what attention gave; added to hidden, as is the
  // feed-forward part.
  Status finish(LayerId l, MatView<const float> mixed, MatView<float> hidden);
  // Of a layer that a device has: the same two of what stays there, which only queue.
  bool on_device(LayerId l) const { return model_.device && l >= model_.first_on_device; }
  Result<RowsThere> project_there(LayerId l, MatView<float> hidden);
  Status finish_there(LayerId l, MatView<float> hidden);
  // logits [rows][vocabulary]
  Status head(MatView<float> hidden, MatView<float> logits);

 private:
  std::size_t layer_there(LayerId l) const { return index(l) - index(model_.first_on_device); }
  Status send(MatView<float> hidden);  // where the device has other rows
  Status bring_back();                 // what it has worked on
  template <typename Body>
  void for_rows(std::size_t rows, const Body& body) const;
  void norm(MatView<const float> x, std::span<const float> weight, MatView<float> out) const;
  // hidden += x, after a norm where the layer has one.
  void add(MatView<float> x, std::span<const float> norm_weight, MatView<float> hidden) const;
  void norm_heads(MatView<float> x, std::span<const float> weight) const;

  const Model& model_;
  LayerScratch& scratch_;
  MatView<float> there_;       // the hidden rows that the device has,
  bool worked_there_ = false;  // and whether they are newer than here
};

}  // namespace thermocline
