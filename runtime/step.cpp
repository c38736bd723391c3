#include "runtime/step.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace thermocline {

// A decode step's products take the path of few rows, and so round as each row alone would.
static_assert(kFewRows == kMaxStepRows);

Status step(const Model& model, KvCache& cache, std::span<const Token> at,
            std::span<const int> tokens, const RowState& rows, LayerScratch* scratch,
            MatView<float> logits) {
  LayerWork work(model, scratch);
  const MatView<float> hidden = rows.hidden(tokens.size());
  TL_TRY_ASSIGN(PendingRows pending, PendingRows::begin(&cache, at, Pass::decode));
  work.embed(tokens, hidden);
  for (std::uint32_t l = 0; l < model.spec->layers.size(); ++l) {
    const LayerId layer{l};
    if (work.on_device(layer) && cache.stays_there(layer)) {
      TL_TRY_ASSIGN(const RowsThere there, work.project_there(layer, hidden));
      TL_TRY(cache.attend_there(layer, there));
      TL_TRY(work.finish_there(layer, hidden));
      continue;
    }
    const Projection projection = rows.projection(model.layer(layer), tokens.size());
    const MatView<float> mixed = rows.mixed(model.layer(layer), tokens.size());
    TL_TRY(work.project(layer, hidden, projection));
    TL_TRY(cache.append(layer, projection.k, projection.v));
    TL_TRY(cache.attend(layer, projection.q, mixed));
    TL_TRY(work.finish(layer, mixed, hidden));
  }
  TL_TRY(work.head(hidden, logits));
  TL_TRY(check_logits(logits));
  return pending.commit();
}

Status check_logits(MatView<const float> logits) {
  for (std::size_t r = 0; r < logits.rows(); ++r) {
    // A sum that finds what is not finite, without a branch for each: 0 * x is 0 or NaN.
    float sum = 0.0f;
    for (const float x : logits[r]) sum += 0.0f * x;
    if (!(sum == 0.0f))
      return fail(ErrorCode::corrupt,
                  "the model gave logits that are not finite numbers: its weights are broken, or "
                  "its RoPE options far from what it was trained with");
  }
  return {};
}

std::uint64_t RowState::bytes_for(const ModelSpec& model, std::size_t rows) {
  const LayersShape of = model.shape();
  return sizeof(float) * rows * (of.width + of.q + of.k + of.v + of.mixed);
}

Result<RowState> RowState::create(const ModelSpec& model, std::size_t rows) {
  RowState state;
  TL_TRY_ASSIGN(state.memory_, Buffer::create(bytes_for(model, rows)));
  const LayersShape of = model.shape();
  float* next = state.memory_.as<float>().data();
  const auto take = [&](std::size_t cols) {
    return MatView<float>(std::exchange(next, next + rows * cols), rows, cols);
  };
  state.hidden_ = take(of.width);
  state.q_ = take(of.q);
  state.k_ = take(of.k);
  state.v_ = take(of.v);
  state.mixed_ = take(of.mixed);
  return state;
}

Projection RowState::projection(const LayerSpec& layer, std::size_t rows) const {
  const auto view = [&](const MatView<float>& of, std::size_t cols) {
    return MatView<float>(of.data(), rows, cols);
  };
  TL_CHECK(rows <= capacity());
  return {view(q_, std::size_t{layer.q_heads} * layer.key_dim),
          view(k_, std::size_t{layer.kv_heads} * layer.key_dim),
          view(v_, std::size_t{layer.kv_heads} * layer.value_dim)};
}

MatView<float> RowState::mixed(const LayerSpec& layer, std::size_t rows) const {
  TL_CHECK(rows <= capacity());
  return {mixed_.data(), rows, std::size_t{layer.q_heads} * layer.value_dim};
}

Result<PendingRows> PendingRows::begin(KvCache* cache, std::span<const Token> rows, Pass pass) {
  TL_TRY(cache->begin(rows, pass));
  return PendingRows(cache);
}

PendingRows::~PendingRows() {
  if (cache_) cache_->rollback();
}

Status PendingRows::commit() {
  TL_TRY(cache_->commit());
  cache_ = nullptr;
  return {};
}

}  // namespace thermocline
