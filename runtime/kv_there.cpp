// Decode of layers whose rows stay on the device that computes them. The host says where rows are
// kept and what may be chosen among; nothing comes back before the step ends, but where sealed rows
// are on a disk. Then what the step appended is taken into the host's sinks and tails as well,
// which seal, fork and save as ever.
#include <algorithm>
#include <cstring>

#include "runtime/kv_impl.h"

namespace thermocline {

Status KvCache::Impl::open_tails_there(TimelineState* state) {
  std::uint64_t bytes = 0;
  const auto bytes_of = [&](std::size_t l) {
    const CachePlan::Layer& planned = plan.layers[l];
    return planned.stays_there ? TailThere::bytes_for(planned.raw, options.layers[l].kv_heads,
                                                      planned.sinks, planned.tail_capacity)
                               : 0;
  };
  for (std::size_t l = 0; l < options.layers.size(); ++l) bytes += bytes_of(l);
  if (bytes == 0) return {};
  TL_TRY_ASSIGN(state->tails, table->take(bytes, Tier::device, Purpose::tail));
  std::byte* memory = state->tails.space().address;
  for (std::size_t l = 0; l < options.layers.size(); ++l) {
    const CachePlan::Layer& planned = plan.layers[l];
    if (!planned.stays_there) continue;
    state->layers[l].there = TailThere(memory, planned.raw, options.layers[l].kv_heads,
                                       planned.sinks, planned.tail_capacity);
    memory += bytes_of(l);
  }
  return {};
}

Status KvCache::Impl::attend_there(LayerId l, const RowsThere& at) {
  const LayerSpec& s = spec(l);
  if (there_begun == 0) TL_TRY(device_step->start(*at.queue));
  if (there_layers.size() == there_begun) there_layers.emplace_back();
  ThereLayer& layer = there_layers[there_begun];
  layer.layer = l;
  layer.asked.of.clear();
  TL_TRY(list_there(l));
  ++there_begun;
  const KeyBalance& balance = balances[index(l)];
  TL_TRY(
      device_step->begin(at, {shape(l), s.kv_heads, s.rope.pairs,
                              static_cast<std::uint32_t>(s.rope.inverse_frequency.size()), s.scale,
                              balance.key_factors(), balance.query_factors(), there_rows}));
  if (plan.layers[index(l)].seals && list_queries_there(l))
    TL_TRY(plan.layers[index(l)].in_pages() ? choose_elsewhere(l) : choose_there(l, &layer));
  return device_step->end();
}

Status KvCache::Impl::list_there(LayerId l) {
  const Angles& of = angles[angles_of_layer[index(l)]];
  const std::size_t pairs = of.rope->inverse_frequency.size();
  there_rows.clear();
  for (std::size_t r = 0; r < rows.size(); ++r) {
    LayerState& layer = layer_state(rows[r].timeline, l);
    TailThere& there = layer.there;
    TL_TRY(there.bring(table->device(), layer.sinks, layer.tail, layer.tail_first,
                       timeline(rows[r].timeline).length, &counted.device_bytes_written));
    const std::uint32_t position = rows[r].position;
    const bool is_sink = position < plan.layers[index(l)].sinks;
    const SteadyRows steady = steady_of(l, r);
    there_rows.push_back(
        {of.cosine + r * pairs,
         of.sine + r * pairs,
         is_sink ? there.sink(position) : there.row(position - layer.tail_first),
         is_sink ? there.sink_apart() : there.row_apart(),
         {{there.sink(0), there.sink_apart(), steady.sinks},
          {there.row(steady.first - layer.tail_first), there.row_apart(), steady.tail}}});
  }
  return {};
}

bool KvCache::Impl::list_queries_there(LayerId l) {
  const std::uint32_t kv_heads = spec(l).kv_heads;
  list_queries.clear();
  bool any = false;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const LayerState& layer = layer_state(rows[r].timeline, l);
    const SteadyRows steady = steady_of(l, r);
    for (std::uint32_t h = 0; h < kv_heads; ++h)
      list_queries.push_back(
          {h, rows[r].position + 1, nullptr, {}, steady.sinks + steady.tail, layer.runs});
    any = any || !layer.runs.empty();
  }
  return any;
}

// Slots are as good as empty once it is not known what is in them.
Status KvCache::Impl::choose_there(LayerId l, ThereLayer* layer) {
  ask_device(l, &layer->asked);
  Status chosen = device_step->choose(choice_format(l), layer->asked.of, layer->asked.lists);
  if (!chosen)
    for (const Token& row : rows) layer_state(row.timeline, l).slotted.forget();
  return chosen;
}

// Of rows on a disk, the host has to be told which are missing.
Status KvCache::Impl::choose_elsewhere(LayerId l) {
  TL_TRY_ASSIGN(const DeviceStep::Steady steady, device_step->steady());
  const HeadShape heads = shape(l);
  for (std::size_t list = 0; list < list_queries.size(); ++list) {
    list_queries[list].query = steady.query + list * heads.heads * heads.key_dim;
    list_queries[list].steady = steady.states.subspan(list * heads.heads, heads.heads);
  }
  return attend_chosen_there(l);
}

Status KvCache::Impl::take_back_there() {
  if (there_begun == 0) return {};
  TL_TRY_ASSIGN(const auto answers, device_step->finish());
  for (std::size_t i = 0; i < there_begun; ++i) {
    take_records(there_layers[i].layer, answers[i].records);
    count_there(there_layers[i], answers[i]);
  }
  there_begun = 0;
  return {};
}

void KvCache::Impl::take_records(LayerId l, const std::byte* records) {
  const CachePlan::Layer& planned = plan.layers[index(l)];
  const std::size_t bytes = planned.raw.bytes();
  for (const Token& row : rows) {
    LayerState& layer = layer_state(row.timeline, l);
    for (std::uint32_t h = 0; h < spec(l).kv_heads; ++h, records += bytes)
      std::memcpy(row.position < planned.sinks ? layer.sinks.row(h, row.position)
                                               : layer.tail.row(h, row.position - layer.tail_first),
                  records, bytes);
    layer.there.reached(row.position + 1);
  }
}

void KvCache::Impl::count_there(const ThereLayer& of, const DeviceStep::Answer& answer) {
  const LayerId l = of.layer;
  const LayerSpec& s = spec(l);
  counted.device_bytes_exchanged += answer.crossed_bytes;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const SteadyRows steady = steady_of(l, r);
    const std::uint64_t attended = std::uint64_t{s.kv_heads} * (steady.sinks + steady.tail);
    const std::uint32_t length = rows[r].position + 1;
    counted.rows_held += s.kv_heads * (s.window > 0 ? std::min(length, s.window) : length);
    counted.rows_read += attended;
    counted.device_bytes_read += attended * plan.layers[index(l)].raw.bytes();
  }
  const ChoiceFormat format = of.asked.of.empty() ? ChoiceFormat() : choice_format(l);
  for (std::size_t i = 0; i < of.asked.of.size(); ++i) {
    count_answer(format, of.asked.of[i], answer.read[i], answer.summaries[i]);
    count_rows(format, of.asked.of[i], answer.read[i],
               answer.fetched.empty() ? 0 : answer.fetched[i]);
    if (answer.of_runs.empty()) continue;
    const Token& row = rows[of.asked.lists[i] / s.kv_heads];
    count_rebuilt(layer_state(row.timeline, l).runs,
                  answer.of_runs.subspan(i * answer.runs, answer.runs));
  }
}

}  // namespace thermocline
