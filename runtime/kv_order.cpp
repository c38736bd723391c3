// What of a step may come when, and in which shape. An embedder makes these calls, so a wrong one
// is an error that says what was given and what is due, and the step is as it was.
#include <algorithm>

#include "runtime/kv_impl.h"

namespace thermocline {

Status KvCache::Impl::check_layer(const char* call, LayerId l) const {
  if (rows.empty())
    return fail(ErrorCode::invalid_argument, call, " without a step: begin() opens one");
  if (index(l) >= options.layers.size())
    return fail(ErrorCode::invalid_argument, call, " of layer ", index(l), ": the cache has ",
                options.layers.size(), " layers");
  if (stages[index(l)] == Stage::failed)
    return fail(ErrorCode::invalid_argument, call, " of layer ", index(l),
                ", whose attend() failed in this step: rollback() is due");
  return {};
}

Status KvCache::Impl::check_shape(const char* call, const char* what, std::size_t given_rows,
                                  std::size_t given_cols, std::size_t due_cols) const {
  if (given_rows == rows.size() && given_cols == due_cols) return {};
  return fail(ErrorCode::invalid_argument, call, ": ", what, " of ", given_rows, " x ", given_cols,
              ", the step and the layer have ", rows.size(), " x ", due_cols);
}

Status KvCache::Impl::check_append(LayerId l, MatView<const float> keys,
                                   MatView<const float> values) const {
  TL_TRY(check_layer("append()", l));
  const LayerSpec& s = spec(l);
  TL_TRY(check_shape("append()", "keys", keys.rows(), keys.cols(),
                     std::size_t{s.kv_heads} * s.key_dim));
  TL_TRY(check_shape("append()", "values", values.rows(), values.cols(),
                     std::size_t{s.kv_heads} * s.value_dim));
  if (stages[index(l)] != Stage::due)
    return fail(ErrorCode::invalid_argument, "append() of layer ", index(l),
                " a second time in one step");
  // Prefill has one buffer, for the layer in hand.
  const auto open = std::find(stages.begin(), stages.end(), Stage::appended);
  if (pass == Pass::prefill && open != stages.end())
    return fail(ErrorCode::invalid_argument, "append() of layer ", index(l), " before attend() of ",
                open - stages.begin(), ": a prefill takes layer after layer");
  // And rows of one group of layers, from the first to the last.
  const auto missed = std::find(stages.begin(), stages.begin() + index(l), Stage::due);
  if (const std::optional<Side> side = method.side_of_layers();
      pass == Pass::prefill && side && missed != stages.begin() + index(l))
    return fail(ErrorCode::invalid_argument, "append() of layer ", index(l), " before layer ",
                missed - stages.begin(), ": with ", method.compress.of(*side).name(),
                " a prefill takes the layers in their order");
  return {};
}

Status KvCache::Impl::check_attend(LayerId l, MatView<const float> queries,
                                   MatView<float> out) const {
  TL_TRY(check_layer("attend()", l));
  const LayerSpec& s = spec(l);
  TL_TRY(check_shape("attend()", "queries", queries.rows(), queries.cols(),
                     std::size_t{s.q_heads} * s.key_dim));
  TL_TRY(
      check_shape("attend()", "out", out.rows(), out.cols(), std::size_t{s.q_heads} * s.value_dim));
  if (stages[index(l)] == Stage::due)
    return fail(ErrorCode::invalid_argument, "attend() of layer ", index(l),
                " before its append()");
  if (stages[index(l)] == Stage::attended)
    return fail(ErrorCode::invalid_argument, "attend() of layer ", index(l),
                " a second time in one step");
  return {};
}

Status KvCache::Impl::check_there(LayerId l) const {
  TL_TRY(check_layer("attend_there()", l));
  if (pass != Pass::decode || !stays_there(l))
    return fail(ErrorCode::invalid_argument, "attend_there() of layer ", index(l),
                ", whose rows do not stay on a device in this step: append() and attend() take it");
  if (stages[index(l)] == Stage::due) return {};
  return fail(ErrorCode::invalid_argument, "attend_there() of layer ", index(l),
              " a second time in one step, or after its append()");
}

Status KvCache::Impl::check_commit() const {
  if (rows.empty())
    return fail(ErrorCode::invalid_argument, "commit() without a step: begin() opens one");
  for (std::size_t i = 0; i < stages.size(); ++i)
    if (stages[i] != Stage::attended)
      return fail(ErrorCode::invalid_argument, "commit() before layer ", i, " was ",
                  stages[i] == Stage::due        ? "appended and attended"
                  : stages[i] == Stage::appended ? "attended"
                                                 : "attended without an error: rollback() is due");
  return {};
}

}  // namespace thermocline
