#include "kernels/cuda/dense_layers.h"

#include "kernels/cuda/dense.h"
#include "kernels/cuda/make_current.h"
#include "kernels/cuda/product.h"

namespace thermocline::cuda {

Result<std::unique_ptr<DenseLayers>> DenseLayers::create(std::uint32_t number,
                                                         const LayersShape& shape,
                                                         std::size_t rows) {
  TL_TRY(make_current(number));
  TL_TRY_ASSIGN(Stream stream, Stream::create_recurring());
  std::unique_ptr<DenseLayers> made(new DenseLayers(number, shape, rows, std::move(stream)));
  const std::uint64_t bytes = layers_work_bytes(shape, rows);
  TL_TRY_ASSIGN(made->memory_, take_device_bytes(bytes, "taking device memory for rows"));
  std::byte* next = made->memory_.get();
  const auto take = [&](std::size_t cols) {
    return reinterpret_cast<float*>(std::exchange(next, next + rows_bytes(rows, cols)));
  };
  made->hidden_ = take(shape.width);
  made->normed_ = take(shape.width);
  made->added_ = take(shape.width);
  made->gate_ = take(shape.feed_forward);
  made->up_ = take(shape.feed_forward);
  made->q_ = take(shape.q);
  made->k_ = take(shape.k);
  made->v_ = take(shape.v);
  made->mixed_ = take(shape.mixed);
  TL_CHECK(next == made->memory_.get() + bytes);
  return made;
}

// What is queued reads and writes memory that goes now.
DenseLayers::~DenseLayers() { static_cast<void>(wait()); }

// What is gathered is launched here.
Status DenseLayers::wait() {
  TL_TRY(make_current(number_));
  return stream_.wait();
}

Status DenseLayers::copy_weights(WeightView* view, std::byte** next) {
  std::byte* const to = std::exchange(*next, *next + round_up(view->bytes(), kWorkApartBytes));
  return stream_.copy_once(to, std::exchange(view->data, to), view->bytes(), cudaMemcpyHostToDevice,
                           "copying weights to a device");
}

Status DenseLayers::copy_weights(std::span<const float>* view, std::byte** next) {
  std::byte* const to = std::exchange(*next, *next + round_up(view->size_bytes(), kWorkApartBytes));
  const float* const from = view->data();
  *view = {reinterpret_cast<const float*>(to), view->size()};
  return stream_.copy_once(to, from, view->size_bytes(), cudaMemcpyHostToDevice,
                           "copying weights to a device");
}

Status DenseLayers::add(const LayerWeights& weights) {
  TL_TRY(make_current(number_));
  Layer layer = {nullptr, weights};
  const std::uint64_t bytes = layer_bytes(weights);
  TL_TRY_ASSIGN(layer.memory, take_device_bytes(bytes, "taking device memory for weights"));
  std::byte* next = layer.memory.get();
  for (const auto matrix : kLayerMatrices) TL_TRY(copy_weights(&(layer.weights.*matrix), &next));
  for (const auto vector : kLayerVectors) TL_TRY(copy_weights(&(layer.weights.*vector), &next));
  TL_CHECK(next == layer.memory.get() + bytes);
  layers_.push_back(std::move(layer));
  return stream_.wait();
}

Status DenseLayers::add(const HeadWeights& weights) {
  TL_TRY(make_current(number_));
  Head head = {nullptr, weights};
  const std::uint64_t bytes = head_bytes(weights);
  TL_TRY_ASSIGN(head.memory, take_device_bytes(bytes + logits_bytes(weights),
                                               "taking device memory for weights"));
  std::byte* next = head.memory.get();
  TL_TRY(copy_weights(&head.weights.output, &next));
  TL_TRY(copy_weights(&head.weights.norm, &next));
  TL_CHECK(next == head.memory.get() + bytes);
  head.logits = reinterpret_cast<float*>(next);
  head_ = std::move(head);
  return stream_.wait();
}

Status DenseLayers::copy_there(float* there, MatView<const float> here) {
  TL_CHECK(here.stride() == here.cols());
  return stream_.copy_once(there, here.data(), here.rows() * here.cols() * sizeof(float),
                           cudaMemcpyHostToDevice, "copying rows to a device");
}

Status DenseLayers::copy_back(MatView<float> here, const float* there) {
  TL_CHECK(here.stride() == here.cols());
  return stream_.copy_once(here.data(), there, here.rows() * here.cols() * sizeof(float),
                           cudaMemcpyDeviceToHost, "copying rows from a device");
}

Status DenseLayers::write(MatView<const float> hidden) {
  TL_CHECK(hidden.rows() <= most_rows_ && hidden.cols() == shape_.width);
  TL_TRY(make_current(number_));
  rows_ = hidden.rows();
  return copy_there(hidden_, hidden);
}

Status DenseLayers::read(MatView<float> hidden) {
  TL_CHECK(hidden.cols() == shape_.width && hidden.rows() == rows_);
  TL_TRY(make_current(number_));
  TL_TRY(copy_back(hidden, hidden_));
  return stream_.wait();
}

Status DenseLayers::head(MatView<float> logits) {
  const WeightView& output = head_.weights.output;
  TL_CHECK(logits.rows() == rows_ && logits.cols() == output.rows);
  TL_TRY(make_current(number_));
  for (std::size_t first = 0; first < rows_; first += kFewRows) {
    const std::size_t count = std::min(kFewRows, rows_ - first);
    const MatView<float> some = rows_of(hidden_, shape_.width).rows_from(first, count);
    const MatView<float> normed(normed_, count, shape_.width);
    const MatView<float> there(head_.logits, count, output.rows);
    TL_TRY(rms_norm(stream_, some, head_.weights.norm.data(), shape_.norm_epsilon, normed));
    TL_TRY(multiply(stream_, output, normed, there));
    TL_TRY(copy_back(logits.rows_from(first, count), there.data()));
  }
  return stream_.wait();
}

Status DenseLayers::project_to(const WeightView& weight, std::span<const float> bias,
                               std::span<const float> head_norm, float* there) {
  const MatView<float> out = rows_of(there, weight.rows);
  TL_TRY(multiply(stream_, weight, rows_of(normed_, shape_.width), out));
  if (!bias.empty())
    TL_TRY(cuda::add(stream_, MatView<const float>(bias.data(), rows_, bias.size(), 0), out));
  if (head_norm.empty()) return {};
  const std::size_t dim = head_norm.size();
  const MatView<float> heads(there, rows_ * weight.rows / dim, dim);
  return rms_norm(stream_, heads, head_norm.data(), shape_.norm_epsilon, heads);
}

Result<RowsThere> DenseLayers::project(std::size_t layer) {
  TL_TRY(make_current(number_));
  const LayerWeights& w = layers_.at(layer).weights;
  TL_TRY(rms_norm(stream_, rows_of(hidden_, shape_.width), w.attention_norm.data(),
                  shape_.norm_epsilon, rows_of(normed_, shape_.width)));
  TL_TRY(project_to(w.q, w.q_bias, w.q_norm, q_));
  TL_TRY(project_to(w.k, w.k_bias, w.k_norm, k_));
  TL_TRY(project_to(w.v, w.v_bias, {}, v_));
  return RowsThere{&stream_, q_, k_, v_, mixed_};
}

Status DenseLayers::project(std::size_t layer, MatView<float> q, MatView<float> k,
                            MatView<float> v) {
  TL_TRY_ASSIGN(const RowsThere there, project(layer));
  TL_CHECK(q.rows() == rows_ && k.rows() == rows_ && v.rows() == rows_);
  TL_TRY(copy_back(q, there.q));
  TL_TRY(copy_back(k, there.k));
  TL_TRY(copy_back(v, there.v));
  return stream_.wait();
}

Status DenseLayers::add_to_hidden(MatView<float> x, std::span<const float> norm) {
  if (!norm.empty()) TL_TRY(rms_norm(stream_, x, norm.data(), shape_.norm_epsilon, x));
  return cuda::add(stream_, x, rows_of(hidden_, shape_.width));
}

Status DenseLayers::finish(std::size_t layer, MatView<const float> mixed) {
  TL_CHECK(mixed.rows() == rows_);
  TL_TRY(make_current(number_));
  TL_TRY(copy_there(mixed_, mixed));
  return finish(layer);
}

Status DenseLayers::finish(std::size_t layer) {
  TL_TRY(make_current(number_));
  const LayerWeights& w = layers_.at(layer).weights;
  const MatView<float> normed = rows_of(normed_, shape_.width);
  const MatView<float> added = rows_of(added_, shape_.width);
  const MatView<float> gate = rows_of(gate_, shape_.feed_forward);
  const MatView<float> up = rows_of(up_, shape_.feed_forward);
  TL_TRY(multiply(stream_, w.output, rows_of(mixed_, w.output.cols), added));
  TL_TRY(add_to_hidden(added, w.attention_post_norm));

  TL_TRY(rms_norm(stream_, rows_of(hidden_, shape_.width), w.feed_forward_norm.data(),
                  shape_.norm_epsilon, normed));
  TL_TRY(multiply(stream_, w.gate, normed, gate));
  TL_TRY(multiply(stream_, w.up, normed, up));
  TL_TRY(activate(stream_, shape_.activation, up, gate));
  TL_TRY(multiply(stream_, w.down, gate, added));
  return add_to_hidden(added, w.feed_forward_post_norm);
}

}  // namespace thermocline::cuda
