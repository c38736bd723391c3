#include "runtime/layer_plan.h"

#include <algorithm>
#include <optional>

#include "runtime/key_balance.h"
#include "runtime/query_tiles.h"
#include "runtime/sealed_plan.h"
#include "runtime/segment_bytes.h"
#include "runtime/timeline_state.h"
#include "runtime/voting.h"
#include "tiers/codec/raw.h"

namespace thermocline {
namespace {

// What a vote takes, and the rows that it leaves of a segment. Where steps vote, a prefill of which
// no row leaves the tail counts as well.
void plan_votes(const Method& method, const LayerSpec& spec, const TextCuts& cuts,
                const CachePlan::Layer& layer, CachePlan* plan) {
  if (!layer.seals || !method.drops()) return;
  if (cuts.segments().empty() && !method.drops_in_steps()) return;
  const std::uint32_t positions = cuts.longest_span();
  const std::uint32_t seen = positions + layer.tail_capacity + layer.sinks;
  plan->voting_bytes =
      std::max(plan->voting_bytes,
               voting_bytes(method, spec, positions, seen) +
                   RawStore::bytes_for(layer.raw, spec.kv_heads, cuts.longest_segment()));
}

// Memory that attention computes in in a decode step, in the layer that takes most of it. Of what a
// device chooses it gets a state a list, which needs no place here.
void plan_workspace(const Method& method, const LayerSpec& spec, const TextCuts& cuts,
                    const CachePlan::Layer& layer, CachePlan* plan) {
  const auto folds_of = [](std::uint64_t rows) { return (rows + kFoldRows - 1) / kFoldRows; };
  std::uint64_t folds = folds_of(layer.sinks) + folds_of(layer.tail_capacity);
  if (layer.seals && !layer.chosen_there()) {
    // A selector may read all, and all of their summaries and codes: no more rows than they stand
    // for.
    std::uint64_t of_rows = 0;
    for (const auto& [rows, count] : cuts.segments()) of_rows += count * folds_of(rows);
    const std::uint64_t forms = 1 + (method.select->summary_bytes(shape_of(spec), kBlockRows) > 0) +
                                (method.select->code_bytes(shape_of(spec), kBlockRows) > 0);
    folds = std::max(folds, forms * of_rows);
  }
  // In each KV head the state of the whole list, and one for each fold.
  const std::uint64_t states = spec.q_heads * (1 + folds);
  plan->decode_states = std::max(plan->decode_states, states);
  plan->decode_state_floats = std::max(plan->decode_state_floats, states * spec.value_dim);
  plan->decode_query_floats =
      std::max<std::uint64_t>(plan->decode_query_floats, spec.q_heads * spec.key_dim);
}

}  // namespace

void plan_tiles(const LayerSpec& spec, const TextCuts& cuts, int threads, CachePlan* plan) {
  const QueryTiles tiles = QueryTiles::cut(spec, 0, cuts.longest_span());
  plan->tile_query_bytes = std::max<std::uint64_t>(
      plan->tile_query_bytes, tiles.count * tiles.query_floats() * sizeof(float));
  plan->tile_state_bytes = std::max<std::uint64_t>(
      plan->tile_state_bytes, tiles.count * tiles.state_floats() * sizeof(float));
  if (tiles.count > 0)
    plan->tile_scratch_bytes = std::max<std::uint64_t>(
        plan->tile_scratch_bytes, tiles.scratch_floats(threads) * sizeof(float));
  plan->tile_position_bytes = std::max<std::uint64_t>(
      plan->tile_position_bytes, tiles.positions() * sizeof(tiles.position[0]));
}

Status check_layer(const LayerSpec& spec, std::size_t l) {
  const auto refuse = [&](const auto&... what) {
    return fail(ErrorCode::invalid_argument, "layer ", l, ": ", what..., " (", spec.q_heads,
                " query heads, ", spec.kv_heads, " KV heads, key size ", spec.key_dim,
                ", value size ", spec.value_dim, ")");
  };
  if (spec.kv_heads == 0 || spec.q_heads % spec.kv_heads != 0)
    return refuse("query heads must be a multiple of the KV heads");
  if (spec.q_heads > kMaxHeads) return refuse("at most ", kMaxHeads, " query heads are supported");
  if (spec.key_dim == 0 || spec.key_dim % 16 != 0 || spec.value_dim == 0 ||
      spec.value_dim % 16 != 0 || spec.key_dim > kMaxHeadSize || spec.value_dim > kMaxHeadSize)
    return refuse("head sizes must be multiples of 16, up to ", kMaxHeadSize);
  if (spec.rope.inverse_frequency.size() * 2 > spec.key_dim)
    return refuse("more rotated pairs than the key size holds");
  return check_query_powers(l, spec);
}

std::vector<std::vector<LayerId>> groups_of(const CacheOptions& options, const Method& method) {
  const std::optional<Side> side = method.side_of_layers();
  const std::size_t most = side ? method.compress.of(*side).fitter()->layers() : 1;
  std::vector<std::vector<LayerId>> groups;
  std::optional<std::size_t> open;
  for (std::uint32_t l = 0; l < options.layers.size(); ++l) {
    const LayerSpec& spec = options.layers[l];
    const auto alike = [&](const LayerSpec& first) {
      return first.kv_heads == spec.kv_heads && first.key_dim == spec.key_dim &&
             first.value_dim == spec.value_dim && first.rope == spec.rope;
    };
    const bool sealing = seals(method, spec);
    if (sealing && open && groups[*open].size() < most &&
        alike(options.layers[index(groups[*open].front())])) {
      groups[*open].push_back(LayerId{l});
      continue;
    }
    if (sealing) open = groups.size();
    groups.push_back({LayerId{l}});
  }
  return groups;
}

void plan_tail(const CacheOptions& options, const Method& method, const LayerSpec& spec,
               CachePlan::Layer* layer) {
  layer->raw = raw_layout(spec.key_dim, spec.value_dim);
  if (spec.window == 0) {
    layer->sinks = method.sink;
    layer->tail_rows =
        std::min(method.recent + method.seal_rows() - 1,
                 options.max_positions - std::min(options.max_positions, method.sink));
  } else {
    // No more than there are positions, lest a window of nearly 2^32 wraps around.
    layer->tail_rows = std::min(std::min(spec.window, options.max_positions) + kWindowSlack,
                                options.max_positions);
  }
  layer->tail_capacity = layer->tail_rows + kMaxStepRows;
}

Status plan_layer(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                  const TextCuts& cuts, CachePlan::Layer layer, CachePlan* plan) {
  plan_tail(options, method, spec, &layer);
  layer.sealed = method.compress.layout(spec.key_dim, spec.value_dim);
  layer.seals = seals(method, spec);
  if (layer.seals && method.drops_in_steps()) {
    layer.votes_bytes = 2 * sizeof(float) * std::uint64_t{spec.kv_heads} * layer.tail_capacity;
    plan->decode_score_floats =
        std::max(plan->decode_score_floats, std::uint64_t{spec.q_heads} * layer.tail_capacity);
  }
  plan->tail_bytes +=
      options.max_timelines *
      (RawStore::bytes_for(layer.raw, spec.kv_heads, layer.tail_capacity + layer.sinks) +
       layer.votes_bytes);
  plan->spare_tail_bytes += RawStore::bytes_for(layer.raw, spec.kv_heads, layer.tail_capacity);
  plan->span_bytes = std::max(
      plan->span_bytes,
      RawStore::bytes_for(
          layer.raw, spec.kv_heads,
          std::max(cuts.raw_rows(spec, plan->layers.size(), layer.tail_rows),
                   layer.seals ? std::max(cuts.longest_joint(), cuts.longest_copied()) : 0)));
  plan_votes(method, spec, cuts, layer, plan);
  if (layer.seals && !cuts.segments().empty())
    TL_TRY(plan_sealed(options, method, spec, cuts, &layer, plan));
  plan_workspace(method, spec, cuts, layer, plan);
  plan->layers.push_back(layer);
  return {};
}

}  // namespace thermocline
