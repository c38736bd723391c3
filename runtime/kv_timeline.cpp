// The life of a timeline: start, fork, cut, end. Where its tail begins is a function of its length,
// so a cut reads sealed rows back that are to be raw again.
#include <algorithm>

#include "runtime/kv_impl.h"

namespace thermocline {

Result<TimelineId> KvCache::Impl::new_timeline() {
  if (spare_tails.empty()) TL_TRY(open_spare_tails());
  const auto others = timelines.size() - static_cast<std::size_t>(std::count(
                                             timelines.begin(), timelines.end(), nullptr));
  TL_TRY(open_decode(std::min(others + 1, kMaxStepRows)));
  auto state = std::make_unique<TimelineState>();
  state->layers.resize(options.layers.size());
  std::uint64_t bytes = 0;
  for (std::size_t l = 0; l < options.layers.size(); ++l)
    bytes += RawStore::bytes_for(plan.layers[l].raw, options.layers[l].kv_heads,
                                 plan.layers[l].tail_capacity + plan.layers[l].sinks) +
             plan.layers[l].votes_bytes;
  TL_TRY_ASSIGN(state->memory, budget->reserve(Tier::host, Purpose::tail, bytes));
  for (std::size_t l = 0; l < options.layers.size(); ++l) {
    const CachePlan::Layer& planned = plan.layers[l];
    LayerState& layer = state->layers[l];
    const std::uint32_t heads = options.layers[l].kv_heads;
    TL_TRY_ASSIGN(layer.sinks, RawStore::create(planned.raw, heads, planned.sinks));
    TL_TRY_ASSIGN(layer.tail, RawStore::create(planned.raw, heads, planned.tail_capacity));
    TL_TRY_ASSIGN(layer.votes.now, Buffer::create(planned.votes_bytes / 2));
    TL_TRY_ASSIGN(layer.votes.next, Buffer::create(planned.votes_bytes / 2));
    layer.tail_first = planned.sinks;
  }
  TL_TRY(open_selections(state.get()));
  TL_TRY(open_slots(state.get()));
  TL_TRY(open_tails_there(state.get()));
  const auto free = std::find(timelines.begin(), timelines.end(), nullptr);
  const auto id = static_cast<std::uint32_t>(free - timelines.begin());
  if (free == timelines.end()) timelines.emplace_back();
  timelines[id] = std::move(state);
  pending.resize(timelines.size() * options.layers.size());
  advanced.resize(timelines.size(), 0);  // a step may be in progress
  return TimelineId{id};
}

Status KvCache::Impl::open_selections(TimelineState* state) {
  std::uint64_t bytes = 0;
  for (const CachePlan::Layer& planned : plan.layers) bytes += planned.selections_bytes;
  if (bytes == 0) return {};
  TL_TRY_ASSIGN(state->selections_memory, budget->reserve(Tier::host, Purpose::selections, bytes));
  for (std::uint32_t l = 0; l < options.layers.size(); ++l) {
    const CachePlan::Layer& planned = plan.layers[l];
    if (planned.selections_bytes == 0) continue;
    state->layers[l].selections.resize(options.layers[l].kv_heads);
    for (SelectionMemory& of_head : state->layers[l].selections)
      for (KeptSelection* kept : {&of_head.now, &of_head.next})
        kept->reserve(shape(LayerId{l}), planned.selection_runs, planned.selection_blocks);
  }
  return {};
}

Status KvCache::Impl::open_slots(TimelineState* state) {
  std::uint64_t bytes = 0;
  for (const CachePlan::Layer& planned : plan.layers) bytes += planned.slots_bytes;
  if (bytes == 0) return {};
  TL_TRY_ASSIGN(state->slots, table->take(bytes, Tier::device, Purpose::row_cache));
  std::byte* memory = state->slots.space().address;
  for (std::size_t l = 0; l < options.layers.size(); ++l) {
    const std::uint64_t of_layer = plan.layers[l].slots_bytes;
    if (of_layer == 0) continue;
    state->layers[l].slotted = SlottedRows(memory, of_layer / options.layers[l].kv_heads,
                                           plan.slots.of_head, plan.slots.rows);
    memory += of_layer;
  }
  return {};
}

Status KvCache::Impl::open_decode(std::size_t step_rows) {
  if (step_rows <= decode_rows) return {};
  TL_TRY(query_scratch.floats(step_rows * plan.decode_query_floats));
  TL_TRY(partial_scratch.floats(step_rows * plan.decode_state_floats));
  TL_TRY(score_scratch.floats(plan.decode_score_floats));
  std::size_t heads = 0;
  for (const LayerSpec& layer : options.layers)
    heads = std::max<std::size_t>(heads, step_rows * layer.q_heads);
  steady_states.reserve(heads);
  partials.reserve(step_rows * plan.decode_states - heads);
  decode_rows = step_rows;
  return {};
}

void KvCache::Impl::end(TimelineId id) {
  for (const Token& row : rows)
    if (row.timeline == id) {
      rollback();
      break;
    }
  timelines[index(id)].reset();
}

// Both go on from the same rows, so what one has fetched the other need not.
Status KvCache::Impl::copy_slots(const TimelineState& from, TimelineState* to) {
  const auto filled = [](const LayerState& layer) { return layer.slotted.remembers(); };
  if (std::ranges::none_of(from.layers, filled)) return {};
  if (there_begun > 0) TL_TRY(device_step->finish());  // what a step in progress puts there
  const Space& slots = from.slots.space();
  TL_TRY(table->device()->copy(to->slots.space().address, slots.address, slots.bytes));
  for (std::size_t l = 0; l < to->layers.size(); ++l)
    to->layers[l].slotted.take_over(from.layers[l].slotted);
  return {};
}

Result<TimelineId> KvCache::Impl::fork(TimelineId from) {
  TL_TRY_ASSIGN(const TimelineId id, new_timeline());
  if (Status copied = copy_slots(timeline(from), &timeline(id)); !copied) {
    end(id);
    return tl::unexpected(copied.error());
  }
  const TimelineState& source = timeline(from);
  TimelineState& copy = timeline(id);
  copy.length = source.length;
  for (std::size_t l = 0; l < copy.layers.size(); ++l) {
    const LayerState& layer = source.layers[l];
    const std::uint32_t sinks = std::min(source.length, plan.layers[l].sinks);
    copy.layers[l].sinks.copy(layer.sinks.view(0, sinks), 0, sinks, 0);
    const std::uint32_t tail = source.tail_rows(layer);
    copy.layers[l].tail.copy(layer.tail.view(0, tail), 0, tail, 0);
    copy.layers[l].tail_first = layer.tail_first;
    copy.layers[l].runs = layer.runs;
    std::ranges::copy(layer.votes.now.bytes(), copy.layers[l].votes.now.data());
    for (std::size_t h = 0; h < layer.selections.size(); ++h)
      copy.layers[l].selections[h].now = layer.selections[h].now;
  }
  return id;
}

// The old tail is the timeline's until the step commits, so the new one needs a place of its own.
// It becomes the spare one then.
Status KvCache::Impl::open_spare_tails() {
  TL_TRY_ASSIGN(Reservation memory,
                budget->reserve(Tier::host, Purpose::sealing, plan.spare_tail_bytes));
  std::vector<RawStore> spare;
  for (std::size_t l = 0; l < options.layers.size(); ++l) {
    const CachePlan::Layer& planned = plan.layers[l];
    TL_TRY_ASSIGN(RawStore tail,
                  RawStore::create(planned.raw, options.layers[l].kv_heads, planned.tail_capacity));
    spare.push_back(std::move(tail));
  }
  spare_memory = std::move(memory);
  spare_tails = std::move(spare);
  return {};
}

Status KvCache::Impl::restore(LayerId l, const LayerState& layer, std::size_t first_run,
                              std::uint32_t end) {
  const std::uint32_t first = layer.runs[first_run].rows->first_position;
  TL_TRY(shape_span(l, std::max(end, first) - first));
  for (const Run& run : std::span(layer.runs).subspan(first_run))
    if (run.rows->first_position < end) TL_TRY(read_back(l, run, first, end));
  if (end > layer.tail_first) {
    const std::uint32_t tail = end - layer.tail_first;
    span.copy(layer.tail.view(layer.tail_first, tail), 0, tail, layer.tail_first - first);
  }
  return {};
}

Status KvCache::Impl::read_back(LayerId l, const Run& run, std::uint32_t first, std::uint32_t end) {
  const RowLayout raw = plan.layers[index(l)].raw;
  ReadList everything;
  everything.reads.push_back({.everything = true});
  std::vector<ReadRequest> heads;
  for (std::uint32_t h = 0; h < spec(l).kv_heads; ++h) heads.push_back({h, {&run, 1}, &everything});
  TL_TRY(reader->start(index(l), FoldOrder::in_list));
  TL_TRY(reader->add(heads));
  while (true) {
    TL_TRY_ASSIGN(const auto wave, reader->next());
    if (wave.empty()) return {};
    for (const ReadyFold& ready : wave) {
      if (!verify(ready)) TL_TRY(reader->read_again(ready));
      std::uint32_t row = ready.ordinal * kFoldRows;
      for (const BlockView& view : ready.fold.blocks)
        for (RowSet left = view.rows; left != 0; left &= left - 1, ++row) {
          const std::uint32_t position = run.rows->position(ready.list, row);
          if (position >= end) continue;
          const auto in_block = static_cast<std::size_t>(std::countr_zero(left));
          method.compress.decode(view.key + in_block * ready.fold.key_stride,
                                 view.value + in_block * ready.fold.value_stride, *run.rows,
                                 ready.list, row, raw, span.row(ready.list, position - first));
        }
    }
  }
}

Status KvCache::Impl::check_cut(TimelineId id, std::uint32_t length) {
  for (std::uint32_t i = 0; i < options.layers.size(); ++i) {
    const LayerState& layer = layer_state(id, LayerId{i});
    const std::uint32_t window = options.layers[i].window;
    const std::uint32_t sinks = plan.layers[i].sinks;
    if (window == 0 && !plan.layers[i].seals && layer.tail_first > sinks && length > sinks &&
        length < layer.tail_first + method.recent)
      return fail(ErrorCode::unsupported, "method ", method.name,
                  " has dropped the positions from ", sinks, " to ", layer.tail_first,
                  " and keeps a window of ", method.recent, ": the timeline can be cut at ",
                  layer.tail_first + method.recent, " or later (or at ", sinks,
                  " or before), not at ", length);
    if (window == 0 && method.drops() && layer.tail_first > sinks && length > sinks &&
        method.tail_begin(length) < layer.tail_first)
      return fail(ErrorCode::unsupported, "method ", method.name,
                  " keeps some of the positions from ", sinks, " to ", layer.tail_first,
                  ": the timeline can be cut at ", layer.tail_first + method.recent,
                  " or later (or at ", sinks, " or before), not at ", length);
    if (window > 0 && layer.tail_first > 0 && length > 0 && length < layer.tail_first + window)
      return fail(ErrorCode::unsupported, "layer ", i, " keeps a sliding window of ", window,
                  " positions: the timeline can be cut at ", layer.tail_first + window,
                  " or later (or 0), not at ", length);
  }
  return {};
}

Status KvCache::Impl::truncate(TimelineId id, std::uint32_t length) {
  if (!rows.empty())
    return fail(ErrorCode::invalid_argument,
                "truncate() in the middle of a step: commit() or rollback() ends it");
  TimelineState& t = timeline(id);
  if (length > t.length)
    return fail(ErrorCode::invalid_argument, "cannot cut a timeline of ", t.length,
                " positions at ", length);
  TL_TRY(check_cut(id, length));
  struct Undo {  // however a cut ends before it is made, with an error or for want of memory
    Impl& cache;
    bool due = true;
    ~Undo() {
      if (due) cache.rollback();
    }
  } undo{*this};
  std::vector<std::size_t> kept(options.layers.size());
  for (std::uint32_t i = 0; i < options.layers.size(); ++i) {
    const LayerState& layer = t.layers[i];
    kept[i] = layer.runs.size();
    if (!plan.layers[i].seals) continue;
    // The rows that are raw in a timeline of this length have to be: the runs that hold some of
    // them are read back and what lies before them is sealed anew.
    const auto ends = [&layer](std::size_t run) {
      return layer.runs[run].rows->first_position + layer.runs[run].rows->rows;
    };
    while (kept[i] > 0 && ends(kept[i] - 1) > method.tail_begin(length)) --kept[i];
    if (kept[i] == layer.runs.size()) continue;
    const std::uint32_t first = layer.runs[kept[i]].rows->first_position;
    TL_TRY(restore(LayerId{i}, layer, kept[i], length));
    TL_TRY(settle(LayerId{i}, span.view(first, std::max(length, first) - first),
                  std::span(layer.runs).first(kept[i]), Pending::Tail::spare,
                  &pending_of(index(id), i), {}));
  }
  TL_TRY(await_sealed());
  for (std::uint32_t i = 0; i < options.layers.size(); ++i) make_room(index(id), i, kept[i]);
  undo.due = false;
  for (std::uint32_t i = 0; i < options.layers.size(); ++i) {
    LayerState& layer = t.layers[i];
    layer.runs.resize(kept[i]);
    if (length < layer.tail_first) layer.tail_first = plan.layers[i].sinks;
    take_over(index(id), i, length);
    if (length < t.length)
      for (SelectionMemory& of_head : layer.selections) of_head.now.forget();
  }
  t.length = length;
  return {};
}

}  // namespace thermocline
