#include "runtime/model/layer.h"

#include <algorithm>

namespace thermocline {
namespace {

constexpr std::size_t kRowGrain = 16;  // rows of hidden state that a task takes

// Cuts one buffer into matrices that start on cache lines.
class Carver {
 public:
  explicit Carver(std::span<float> floats) : floats_(floats) {}
  static std::size_t floats(std::size_t rows, std::size_t cols) {
    return round_up(rows * cols, 16);
  }
  MatView<float> take(std::size_t rows, std::size_t cols) {
    TL_CHECK(floats(rows, cols) <= floats_.size());
    const MatView<float> view(floats_.data(), rows, cols);
    floats_ = floats_.subspan(floats(rows, cols));
    return view;
  }

 private:
  std::span<float> floats_;
};

// Of the rows' matrices.
std::size_t matrix_bytes(const ModelSpec& model, std::size_t rows) {
  return sizeof(float) * 2 *
         (Carver::floats(rows, model.width) + Carver::floats(rows, model.feed_forward));
}

// Of the widest matrix that is multiplied.
std::size_t widest(const ModelSpec& model) {
  std::size_t cols = std::max(model.width, model.feed_forward);
  for (const LayerSpec& layer : model.layers)
    cols = std::max(cols, std::size_t{layer.q_heads} * layer.value_dim);
  return cols;
}

}  // namespace

Result<LayerScratch> LayerScratch::create(const Model& model, std::size_t rows) {
  const std::size_t width = model.spec->width, inner = model.spec->feed_forward;
  LayerScratch scratch;
  scratch.rows_ = rows;
  TL_TRY_ASSIGN(scratch.memory_, Buffer::create(matrix_bytes(*model.spec, rows)));
  Carver carver(scratch.memory_.as<float>());
  scratch.normed_ = carver.take(rows, width);
  scratch.added_ = carver.take(rows, width);
  scratch.gate_ = carver.take(rows, inner);
  scratch.up_ = carver.take(rows, inner);
  TL_TRY_ASSIGN(scratch.products_,
                ProductScratch::create(model.machine, rows, widest(*model.spec)));
  return scratch;
}

std::uint64_t LayerScratch::bytes_for(const Model& model, std::size_t rows) {
  return matrix_bytes(*model.spec, rows) +
         ProductScratch::bytes_for(model.machine, rows, widest(*model.spec));
}

// A few rows are not worth a parallel region.
template <typename Body>
void LayerWork::for_rows(std::size_t rows, const Body& body) const {
  const auto range = [&](std::size_t first, std::size_t last) {
    for (std::size_t r = first; r < last; ++r) body(r);
  };
  if (rows <= kFewRows)
    range(0, rows);
  else
    model_.machine.workers->parallel(rows, kRowGrain, range);
}

void LayerWork::norm(MatView<const float> x, std::span<const float> weight,
                     MatView<float> out) const {
  for_rows(x.rows(), [&](std::size_t r) {
    model_.machine.cpu->dense.rms_norm(x.row(r), weight.data(), x.cols(), model_.spec->norm_epsilon,
                                       out.row(r));
  });
}

void LayerWork::norm_heads(MatView<float> x, std::span<const float> weight) const {
  if (weight.empty()) return;
  for_rows(x.rows(), [&](std::size_t r) {
    for (std::size_t head = 0; head < x.cols(); head += weight.size())
      model_.machine.cpu->dense.rms_norm(x.row(r) + head, weight.data(), weight.size(),
                                         model_.spec->norm_epsilon, x.row(r) + head);
  });
}

void LayerWork::add(MatView<float> x, std::span<const float> norm_weight,
                    MatView<float> hidden) const {
  for_rows(x.rows(), [&](std::size_t r) {
    const DenseOps& dense = model_.machine.cpu->dense;
    if (!norm_weight.empty())
      dense.rms_norm(x.row(r), norm_weight.data(), x.cols(), model_.spec->norm_epsilon, x.row(r));
    dense.add(x.row(r), x.cols(), hidden.row(r));
  });
}

LayerWork::~LayerWork() {
  if (model_.device) static_cast<void>(model_.device->wait());
}

Status LayerWork::send(MatView<float> hidden) {
  if (there_.data() == hidden.data() && there_.rows() == hidden.rows()) return {};
  TL_TRY(bring_back());
  TL_TRY(model_.device->write(hidden));
  there_ = hidden;
  return {};
}

Status LayerWork::bring_back() {
  if (!worked_there_) return {};
  TL_TRY(model_.device->read(there_));
  worked_there_ = false;
  return {};
}

void LayerWork::embed(std::span<const int> tokens, MatView<float> hidden) {
  there_ = {};
  worked_there_ = false;
  for_rows(tokens.size(), [&](std::size_t r) {
    const CpuTable& cpu = *model_.machine.cpu;
    cpu.matvec.dequantize(model_.weights->embedding, static_cast<std::size_t>(tokens[r]),
                          hidden.row(r));
    if (model_.spec->embedding_scale != 1.0f)
      cpu.dense.scale(model_.spec->embedding_scale, hidden.cols(), hidden.row(r));
  });
}

Status LayerWork::project(LayerId l, MatView<float> hidden, const Projection& out) {
  if (on_device(l)) {
    TL_TRY(send(hidden));
    return model_.device->project(layer_there(l), out.q, out.k, out.v);
  }
  const LayerWeights& w = model_.weights->layers[index(l)];
  const MatView<float> normed = scratch_.normed_.rows_from(0, hidden.rows());
  norm(hidden, w.attention_norm, normed);
  const Product products[] = {
      {w.q, w.q_bias, out.q}, {w.k, w.k_bias, out.k}, {w.v, w.v_bias, out.v}};
  TL_TRY(scratch_.products_.multiply(model_.machine, normed, products));
  norm_heads(out.q, w.q_norm);
  norm_heads(out.k, w.k_norm);
  return {};
}

Status LayerWork::finish(LayerId l, MatView<const float> mixed, MatView<float> hidden) {
  if (on_device(l)) {
    TL_TRY(send(hidden));
    worked_there_ = true;
    return model_.device->finish(layer_there(l), mixed);
  }
  const LayerWeights& w = model_.weights->layers[index(l)];
  const std::size_t rows = hidden.rows();
  const MatView<float> normed = scratch_.normed_.rows_from(0, rows);
  const MatView<float> added = scratch_.added_.rows_from(0, rows);
  const MatView<float> gated = scratch_.gate_.rows_from(0, rows);
  const Product attended[] = {{w.output, {}, added}};
  TL_TRY(scratch_.products_.multiply(model_.machine, mixed, attended));
  add(added, w.attention_post_norm, hidden);

  norm(hidden, w.feed_forward_norm, normed);
  TL_TRY(scratch_.products_.multiply_gated(model_.machine, normed, w.gate, w.up,
                                           model_.spec->architecture->activation,
                                           scratch_.up_.rows_from(0, rows), gated));
  const Product down[] = {{w.down, {}, added}};
  TL_TRY(scratch_.products_.multiply(model_.machine, gated, down));
  add(added, w.feed_forward_post_norm, hidden);
  return {};
}

Result<RowsThere> LayerWork::project_there(LayerId l, MatView<float> hidden) {
  TL_TRY(send(hidden));
  return model_.device->project(layer_there(l));
}

Status LayerWork::finish_there(LayerId l, MatView<float> hidden) {
  TL_TRY(send(hidden));
  worked_there_ = true;
  return model_.device->finish(layer_there(l));
}

Status LayerWork::head(MatView<float> hidden, MatView<float> logits) {
  if (model_.head_on_device) {
    TL_TRY(send(hidden));
    return model_.device->head(logits);
  }
  TL_TRY(bring_back());
  const MatView<float> normed = scratch_.normed_.rows_from(0, hidden.rows());
  norm(hidden, model_.weights->output_norm, normed);
  const Product products[] = {{model_.weights->output, {}, logits}};
  return scratch_.products_.multiply(model_.machine, normed, products);
}

}  // namespace thermocline
