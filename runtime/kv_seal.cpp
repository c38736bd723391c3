// Sealing: rows that leave the tail become segments, once. And the way back, when a timeline is
// cut: where its tail begins is a function of its length, so rows that are to be raw again are read
// back.
#include <algorithm>

#include "runtime/kv_impl.h"

namespace thermocline {

// The old tail is the timeline's until the step commits, so the new one needs a place of its own.
// It becomes the spare one then.
Status KvCache::Impl::open_spare_tails() {
  TL_TRY_ASSIGN(spare_memory, budget->reserve(Tier::host, Purpose::sealing, plan.spare_tail_bytes));
  std::vector<RawStore> spare;
  for (std::size_t l = 0; l < options.layers.size(); ++l) {
    const CachePlan::Layer& planned = plan.layers[l];
    TL_TRY_ASSIGN(RawStore tail,
                  RawStore::create(planned.raw, options.layers[l].kv_heads, planned.tail_capacity));
    spare.push_back(std::move(tail));
  }
  spare_tails = std::move(spare);
  return {};
}

// Room for so many of a layer's raw rows; what was there is lost.
Status KvCache::Impl::shape_span(LayerId l, std::size_t span_rows) {
  const RowLayout raw = plan.layers[index(l)].raw;
  const std::uint32_t heads = spec(l).kv_heads, capacity = static_cast<std::uint32_t>(span_rows);
  const std::uint64_t bytes = RawStore::bytes_for(raw, heads, capacity);
  if (bytes > span_memory.bytes()) {
    span = RawStore{};
    span_memory = Reservation{};
    TL_TRY_ASSIGN(span_memory, budget->reserve(Tier::host, Purpose::sealing, bytes));
  }
  return span.reshape(raw, heads, capacity);
}

// Prefill works on one buffer a layer: the rows of the tail, then the span's new rows.
Status KvCache::Impl::open_span(LayerId l) {
  const LayerState& layer = layer_state(rows[0].timeline, l);
  const std::uint32_t tail = timeline(rows[0].timeline).tail_rows(layer);
  TL_TRY(shape_span(l, tail + rows.size()));
  span.copy(layer.tail.view(layer.tail_first, tail), 0, tail, 0);
  return {};
}

std::uint32_t KvCache::Impl::rows_to_leave(LayerId l, std::uint32_t first,
                                           std::uint32_t end) const {
  const std::uint32_t window = spec(l).window;
  if (window == 0) return std::max(method.tail_begin(end), first) - first;
  // Forgotten, now and then: no query sees them again.
  const bool full = end - first + kMaxStepRows > plan.layers[index(l)].tail_capacity;
  return full ? end - first - window - kWindowSlack / 2 : 0;
}

Status KvCache::Impl::settle(LayerId l, const RawRows& raw, Pending::Tail where, Pending* into,
                             const StopSign& stop) {
  const Stopwatch watch(&counted.seal_ms);
  const std::uint32_t gone = rows_to_leave(l, raw.first_position, raw.first_position + raw.rows);
  if (gone > 0 && plan.layers[index(l)].seals)
    TL_TRY(seal(l, raw.part(0, gone), &into->new_runs, stop));
  if (where == Pending::Tail::spare) spare_tails[index(l)].copy(raw, gone, raw.rows - gone, 0);
  into->tail = where;
  into->tail_first = raw.first_position + gone;
  return {};
}

Status KvCache::Impl::seal(LayerId l, const RawRows& raw, std::vector<Run>* runs,
                           const StopSign& stop) {
  for (std::uint32_t first = 0, count = 0; first < raw.rows; first += count) {
    const std::uint32_t in_cell = (raw.first_position + first - method.sink) % method.cell_rows();
    count = std::min(method.cell_rows() - in_cell, raw.rows - first);
    TL_TRY(stop.check());
    TL_TRY_ASSIGN(Run run, form(l, raw.part(first, count)));
    runs->push_back(std::move(run));
  }
  counted.rows_sealed += raw.rows;
  return {};
}

namespace {

// Keeps an index and its place in the ledger together.
struct HeldIndex {
  std::shared_ptr<const SegmentIndex> index;
  Reservation memory;
};

}  // namespace

Result<Run> KvCache::Impl::form(LayerId l, const RawRows& raw) {
  const LayerSpec& s = spec(l);
  const CachePlan::Layer& planned = plan.layers[index(l)];
  auto held = std::make_shared<HeldIndex>();
  TL_TRY_ASSIGN(held->memory,
                budget->reserve(Tier::host, Purpose::index,
                                s.kv_heads * method.select->index_bytes(shape(l), raw.rows)));
  TL_TRY_ASSIGN(Formation formation, method.select->form({l, shape(l), raw}, *workers));

  Run run;
  Segment segment;
  segment.layer = l;
  segment.layout = planned.sealed;
  segment.heads = s.kv_heads;
  segment.rows = raw.rows;
  segment.first_position = raw.first_position;
  segment.offset.assign(formation.order.begin(), formation.order.end());
  const std::size_t record_bytes = std::size_t{planned.sealed.bytes()} * raw.rows * s.kv_heads;
  TL_TRY_ASSIGN(const Reservation coding,
                budget->reserve(Tier::host, Purpose::sealing, record_bytes));
  TL_TRY_ASSIGN(const Buffer records, Buffer::create(record_bytes));
  workers->parallel(s.kv_heads, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t h = first; h < last; ++h) {
      std::span<const std::uint32_t> order;
      if (!formation.order.empty())
        order = std::span(formation.order).subspan(h * raw.rows, raw.rows);
      method.compress.encode(raw, static_cast<std::uint32_t>(h), order,
                             records.data() + h * raw.rows * planned.sealed.bytes());
    }
  });
  TL_TRY_ASSIGN(run.rows,
                table->adopt(std::move(segment), records.bytes(), plan.home, Purpose::rows));

  if (formation.summaries > 0) {
    Segment summary;
    summary.layer = l;
    summary.layout = formation.summary_layout;
    summary.heads = s.kv_heads;
    summary.rows = formation.summaries;
    TL_TRY_ASSIGN(run.summaries, table->adopt(std::move(summary), formation.summary_rows,
                                              Tier::host, Purpose::index));
  }
  if (formation.index) {
    TL_TRY(held->memory.resize(formation.index->bytes()));
    held->index = std::move(formation.index);
    const SegmentIndex* plain = held->index.get();
    run.index = std::shared_ptr<const SegmentIndex>(std::move(held), plain);
  }
  return run;
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

// A run's rows before `end`, in position order, to `span`, whose row 0 is at `first`.
Status KvCache::Impl::read_back(LayerId l, const Run& run, std::uint32_t first, std::uint32_t end) {
  const RowLayout raw = plan.layers[index(l)].raw;
  ReadList everything;
  everything.reads.push_back({.everything = true});
  std::vector<ReadRequest> heads;
  for (std::uint32_t h = 0; h < spec(l).kv_heads; ++h) heads.push_back({h, {&run, 1}, &everything});
  TL_TRY(reader->start(index(l), heads, FoldOrder::in_list));
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
                                 view.value + in_block * ready.fold.value_stride, raw,
                                 span.row(ready.list, position - first));
        }
    }
  }
}

// Whether every row that a query at `length` would need is still there.
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
    Status settled = restore(LayerId{i}, layer, kept[i], length);
    if (settled)
      settled = settle(LayerId{i}, span.view(first, std::max(length, first) - first),
                       Pending::Tail::spare, &pending_of(index(id), i));
    if (!settled) {
      rollback();
      return settled;
    }
  }
  for (std::uint32_t i = 0; i < options.layers.size(); ++i) {
    LayerState& layer = t.layers[i];
    layer.runs.resize(kept[i]);
    if (length < layer.tail_first) layer.tail_first = plan.layers[i].sinks;
    take_over(index(id), i, length);
  }
  t.length = length;
  return {};
}

}  // namespace thermocline
