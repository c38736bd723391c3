// Sealing: rows that leave the tail become segments, once.
#include <algorithm>

#include "runtime/kv_impl.h"

namespace thermocline {

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

Status KvCache::Impl::settle(LayerId l, const RawRows& raw, std::span<const Run> before,
                             Pending::Tail where, Pending* into, const Votes& votes,
                             const StopSign& stop, MatView<const float> queries) {
  const Stopwatch watch(&counted.seal_ms);
  const std::uint32_t gone = rows_to_leave(l, raw.first_position, raw.first_position + raw.rows);
  if (gone > 0 && plan.layers[index(l)].seals)
    TL_TRY(seal(l, raw, gone, before.empty() ? nullptr : &before.back(), &into->new_runs, votes,
                stop, queries));
  if (where == Pending::Tail::spare) spare_tails[index(l)].copy(raw, gone, raw.rows - gone, 0);
  into->tail = where;
  into->tail_first = raw.first_position + gone;
  return {};
}

Status KvCache::Impl::await_sealed() {
  reader->rest();
  const Stopwatch watch(&counted.seal_ms);
  return table->written();
}

Status KvCache::Impl::seal(LayerId l, const RawRows& raw, std::uint32_t leave, const Run* before,
                           std::vector<Run>* runs, const Votes& votes, const StopSign& stop,
                           MatView<const float> queries) {
  for (std::uint32_t first = 0, count = 0; first < leave; first += count) {
    const std::uint32_t in_cell = (raw.first_position + first - method.sink) % method.cell_rows();
    count = std::min(method.cell_rows() - in_cell, leave - first);
    TL_TRY(stop.check());
    TL_TRY_ASSIGN(const KeptRows kept, keep_rows(l, raw.part(first, count), first, leave, votes));
    const Run* const last = runs->empty() ? before : &runs->back();
    TL_TRY_ASSIGN(Run run, form(l, kept.rows, last, kept.which, queries));
    counted.rows_sealed += kept.rows.rows;
    runs->push_back(std::move(run));
  }
  return {};
}

namespace {

// Keeps an index and its place in the ledger together: of the host's, or the device's with its
// bytes there.
struct HeldIndex {
  std::shared_ptr<const SegmentIndex> index;
  Reservation memory;
  Slot there;
};

}  // namespace

void KvCache::Impl::sample_queries(LayerId l, MatView<const float> queries,
                                   const QuerySample& sample, float* out) const {
  const LayerSpec& s = spec(l);
  const std::size_t group = s.q_heads / s.kv_heads;
  workers->parallel(std::size_t{s.kv_heads} * sample.count, 64, [&](auto first, auto last) {
    for (std::size_t i = first; i < last; ++i) {
      const std::uint32_t position = sample.position(static_cast<std::uint32_t>(i % sample.count));
      const std::size_t row = position - rows[0].position;
      float* to = out + i * group * s.key_dim;
      std::copy_n(queries.row(row) + i / sample.count * group * s.key_dim, group * s.key_dim, to);
      for (std::size_t g = 0; g < group; ++g) turn_query(l, row, to + g * s.key_dim);
    }
  });
}

Result<Run> KvCache::Impl::form(LayerId l, const RawRows& raw, const Run* before,
                                std::span<const std::uint32_t> which,
                                MatView<const float> queries) {
  const LayerSpec& s = spec(l);
  const CachePlan::Layer& planned = plan.layers[index(l)];
  TL_TRY_ASSIGN(Reservation memory, reserve_index(l, raw.rows));
  Sealing sealing{l, shape(l), raw, which};
  Buffer sampled;
  Reservation sampled_memory;
  if (!queries.empty() && method.select->facts().watches == Watched::queries) {
    const std::uint32_t end = rows[0].position + static_cast<std::uint32_t>(queries.rows());
    const QuerySample sample = QuerySample::of(std::max(raw.first_position, rows[0].position), end);
    const std::size_t bytes = std::size_t{sample.count} * s.q_heads * s.key_dim * sizeof(float);
    TL_TRY_ASSIGN(sampled_memory, budget->reserve(Tier::host, Purpose::sealing, bytes));
    TL_TRY_ASSIGN(sampled, Buffer::create(bytes));
    sample_queries(l, queries, sample, sampled.as<float>().data());
    sealing.queries = sample.count;
    sealing.query = sampled.as<float>().data();
    sealing.first_query = sample.first;
    sealing.query_stride = sample.stride;
    sealing.recent = method.recent;
    sealing.sinks = layer_state(rows[0].timeline, l).sinks.view(0, planned.sinks);
  }
  TL_TRY_ASSIGN(Formation formation, method.select->form(sealing, *workers));
  sampled = Buffer();
  sampled_memory = Reservation();

  Run run;
  Segment segment;
  segment.layer = l;
  segment.layout = planned.sealed;
  segment.heads = s.kv_heads;
  segment.rows = raw.rows;
  segment.first_position = raw.first_position;
  segment.offset.assign(formation.order.begin(), formation.order.end());
  if (!which.empty()) {
    segment.offset.resize(which.size());
    for (std::size_t i = 0; i < which.size(); ++i) {
      const std::size_t head = i / raw.rows;
      segment.offset[i] = static_cast<std::uint16_t>(
          formation.order.empty() ? which[i] : which[head * raw.rows + formation.order[i]]);
    }
  }
  const Segment* const last = before ? before->rows.get() : nullptr;
  TL_TRY(fit_rows(l, raw, formation, last, queries, &segment));
  const std::size_t record_bytes = std::size_t{planned.sealed.bytes()} * raw.rows * s.kv_heads;
  TL_TRY_ASSIGN(Reservation coding, budget->reserve(Tier::host, Purpose::sealing, record_bytes));
  TL_TRY_ASSIGN(Buffer records, Buffer::create(record_bytes));
  workers->parallel(s.kv_heads, 1, [&](std::size_t first, std::size_t end) {
    for (std::size_t h = first; h < end; ++h) {
      std::span<const std::uint32_t> order;
      if (!formation.order.empty())
        order = std::span(formation.order).subspan(h * raw.rows, raw.rows);
      method.compress.encode(raw, static_cast<std::uint32_t>(h), order, segment, 0,
                             records.data() + h * raw.rows * planned.sealed.bytes());
    }
  });
  TL_TRY_ASSIGN(
      const std::shared_ptr<Segment> adopted,
      table->adopt(std::move(segment), records.bytes(), planned.home.tier, Purpose::rows));
  records = Buffer();
  TL_TRY(coding.resize(0));
  TL_TRY(fit_layers(raw, formation, last, adopted));
  run.rows = adopted;

  if (table->keeps())
    TL_TRY(table->keep(*run.rows, [&](RecordWriter* out) {
      save_fits(*run.rows, last, out);
      method.select->save(formation, out);
    }));
  TL_TRY(attach(l, std::move(formation), std::move(memory), &run));
  return run;
}

Result<Reservation> KvCache::Impl::reserve_index(LayerId l, std::uint32_t sealed_rows) {
  const bool leaves = plan.layers[index(l)].chosen_there();
  return budget->reserve(Tier::host, leaves ? Purpose::sealing : Purpose::index,
                         spec(l).kv_heads * method.select->index_bytes(shape(l), sealed_rows));
}

Status KvCache::Impl::attach(LayerId l, Formation formation, Reservation memory, Run* run) {
  const bool there = plan.layers[index(l)].chosen_there();
  const Tier tier = there ? Tier::device : Tier::host;
  const auto adopt = [&](std::uint32_t rows_a_head, const RowLayout& layout,
                         std::span<const std::byte> records) {
    Segment segment;
    segment.layer = l;
    segment.layout = layout;
    segment.heads = spec(l).kv_heads;
    segment.rows = rows_a_head;
    return table->adopt(std::move(segment), records, tier, Purpose::index);
  };
  if (formation.summaries > 0) {
    TL_TRY_ASSIGN(run->summaries,
                  adopt(formation.summaries, formation.summary_layout, formation.summary_rows));
  }
  if (!formation.code_rows.empty()) {
    TL_TRY_ASSIGN(run->codes, adopt(run->rows->rows, formation.code_layout, formation.code_rows));
  }
  if (formation.index) {
    auto held = std::make_shared<HeldIndex>();
    if (there) {
      TL_TRY_ASSIGN(held->there, table->put(formation.index->whole(), tier, Purpose::index));
      held->index = formation.index->copied_to(held->there.space().address);
      TL_CHECK(held->index != nullptr);
    } else {
      held->memory = std::move(memory);
      TL_TRY(held->memory.resize(formation.index->bytes()));
      held->index = std::move(formation.index);
    }
    const SegmentIndex* plain = held->index.get();
    run->index = std::shared_ptr<const SegmentIndex>(std::move(held), plain);
  }
  return {};
}

}  // namespace thermocline
