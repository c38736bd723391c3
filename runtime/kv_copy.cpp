// A timeline from one cache to another, which seals it by its own method: rows that cost hours to
// compute are computed once, raw, and sealed as often as methods are compared.
#include <algorithm>

#include "runtime/kv_impl.h"

namespace thermocline {

Status KvCache::Impl::read_rows(LayerId l, const LayerState& layer, std::uint32_t first,
                                std::uint32_t end, RawStore* to) {
  const std::uint32_t sinks = plan.layers[index(l)].sinks;
  if (first < sinks) to->copy(layer.sinks.view(0, sinks), first, std::min(end, sinks) - first, 0);
  for (const Run& run : layer.runs) {
    const std::uint32_t begins = run.rows->first_position, ends = begins + run.rows->rows;
    if (ends <= first || begins >= end) continue;
    TL_TRY(shape_span(l, run.rows->rows));
    TL_TRY(read_back(l, run, begins, ends));
    const std::uint32_t from = std::max(first, begins), until = std::min(end, ends);
    to->copy(span.view(begins, run.rows->rows), from - begins, until - from, from - first);
  }
  const std::uint32_t from = std::max(first, layer.tail_first);
  if (end > from)
    to->copy(layer.tail.view(layer.tail_first, end - layer.tail_first), from - layer.tail_first,
             end - from, from - first);
  return {};
}

Status KvCache::Impl::take_rows(Impl& other, LayerId l, const LayerState& layer,
                                std::uint32_t first, std::uint32_t end, RawStore* to) const {
  TL_TRY(other.read_rows(l, layer, first, end, to));
  const KeyBalance &theirs = other.balances[index(l)], &ours = balances[index(l)];
  if (ours == theirs) return {};
  const LayerSpec& s = spec(l);
  workers->parallel(end - first, 256, [&](std::size_t from, std::size_t until) {
    for (auto r = static_cast<std::uint32_t>(from); r < until; ++r)
      for (std::uint32_t h = 0; h < s.kv_heads; ++h)
        ours.convert_from(theirs, s.key_dim, *cpu, to->row(h, r));
  });
  return {};
}

Status KvCache::Impl::copy_layers(Impl& other, std::span<const LayerId> layers,
                                  const TimelineState& from, const StopSign& stop,
                                  TimelineState* into) {
  const CachePlan::Layer& planned = plan.layers[index(layers[0])];  // alike in all of them
  const std::uint32_t heads = spec(layers[0]).kv_heads;
  const std::uint32_t tail_first = spec(layers[0]).window > 0
                                       ? from.layers[index(layers[0])].tail_first
                                       : method.tail_begin(from.length);
  std::uint32_t first = planned.sinks;
  RawStore cell;
  Reservation memory;
  while (planned.seals && first < tail_first) {
    TL_TRY(stop.check());
    const std::uint32_t in_cell = (first - method.sink) % method.cell_rows();
    const std::uint32_t count = std::min(method.cell_rows() - in_cell, tail_first - first);
    if (memory.bytes() == 0) {
      TL_TRY_ASSIGN(memory, budget->reserve(Tier::host, Purpose::sealing,
                                            RawStore::bytes_for(planned.raw, heads, count)));
    } else {
      TL_TRY(memory.resize(RawStore::bytes_for(planned.raw, heads, count)));
    }
    TL_TRY(cell.reshape(planned.raw, heads, count));
    for (const LayerId l : layers) {
      TL_TRY(take_rows(other, l, from.layers[index(l)], first, first + count, &cell));
      std::vector<Run>& runs = into->layers[index(l)].runs;
      TL_TRY_ASSIGN(Run run,
                    form(l, cell.view(first, count), runs.empty() ? nullptr : &runs.back()));
      runs.push_back(std::move(run));
      counted.rows_sealed += count;
    }
    first += count;
  }
  for (const LayerId l : layers) {
    LayerState& layer = into->layers[index(l)];
    const std::uint32_t sinks = std::min(from.length, planned.sinks);
    TL_TRY(take_rows(other, l, from.layers[index(l)], 0, sinks, &layer.sinks));
    layer.tail_first = std::max(tail_first, planned.sinks);
    if (from.length > layer.tail_first)
      TL_TRY(
          take_rows(other, l, from.layers[index(l)], layer.tail_first, from.length, &layer.tail));
  }
  return {};
}

Status KvCache::Impl::copy(Impl& other, TimelineId from, TimelineId into, const StopAsked& asked) {
  if (!rows.empty() || !other.rows.empty())
    return fail(ErrorCode::invalid_argument,
                "copy() in the middle of a step: commit() or rollback() ends it");
  if (options.layers != other.options.layers)
    return fail(ErrorCode::invalid_argument, "copy() between caches of different layers");
  const TimelineState& source = other.timeline(from);
  TimelineState& target = timeline(into);
  if (target.length > 0)
    return fail(ErrorCode::invalid_argument, "copy() into a timeline of ", target.length,
                " positions: it takes an empty one");
  if (source.length > options.max_positions)
    return fail(ErrorCode::exhausted, "copy() of ", source.length,
                " positions into a cache made for ", options.max_positions, ": raise -c");
  for (std::uint32_t l = 0; l < options.layers.size(); ++l)
    if (options.layers[l].window == 0 && (!other.plan.layers[l].seals || other.method.drops()) &&
        source.layers[l].tail_first > other.plan.layers[l].sinks)
      return fail(ErrorCode::unsupported, "method ", other.method.name,
                  " has dropped rows of the timeline: it cannot be sealed by another");
  if (const std::string watched = method.watches(); !watched.empty())
    return fail(ErrorCode::unsupported, "method ", method.name, " watches a prefill (", watched,
                "): it cannot take rows that another has read");
  const StopSign stop(asked);
  const Stopwatch watch(&counted.seal_ms);
  Status copied;
  for (const std::vector<LayerId>& layers : plan.groups)
    if (copied) copied = copy_layers(other, layers, source, stop, &target);
  if (copied) copied = table->written();
  if (!copied) {
    for (std::size_t l = 0; l < target.layers.size(); ++l) {
      target.layers[l].runs.clear();
      target.layers[l].tail_first = plan.layers[l].sinks;
    }
    gathered.clear();
    (void)table->written();  // of what is gone nobody is told
    (void)other.await_sealed();
    return copied;
  }
  target.length = source.length;
  return {};
}

}  // namespace thermocline
