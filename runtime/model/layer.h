// The dense work of a forward pass on rows of hidden state: one layer function for every
// architecture, and for one row as for many.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/base/ids.h"
#include "kernels/base/view.h"
#include "runtime/model/model.h"
#include "runtime/model/product.h"
#include "runtime/model/weights.h"

namespace thermocline {

// A model on this machine. Borrowed, immutable.
struct Model {
  const ModelSpec* spec = nullptr;
  const Weights* weights = nullptr;
  Machine machine;

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
class LayerWork {
 public:
  LayerWork(const Model& model, LayerScratch* scratch) : model_(model), scratch_(*scratch) {}

  // Tokens are below the vocabulary's size.
  void embed(std::span<const int> tokens, MatView<float> hidden) const;
  Status project(LayerId l, MatView<const float> hidden, const Projection& out) const;
  // mixed [rows][q_heads * value_dim]: what attention gave; added to hidden, as is the
  // feed-forward part.
  Status finish(LayerId l, MatView<const float> mixed, MatView<float> hidden) const;
  // logits [rows][vocabulary]
  Status head(MatView<const float> hidden, MatView<float> logits) const;

 private:
  template <typename Body>
  void for_rows(std::size_t rows, const Body& body) const;
  void norm(MatView<const float> x, std::span<const float> weight, MatView<float> out) const;
  // hidden += x, after a norm where the layer has one.
  void add(MatView<float> x, std::span<const float> norm_weight, MatView<float> hidden) const;
  void norm_heads(MatView<float> x, std::span<const float> weight) const;

  const Model& model_;
  LayerScratch& scratch_;
};

}  // namespace thermocline
