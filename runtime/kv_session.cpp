// A timeline that outlives its process: saved into the file that its rows are in, and resumed.
#include <algorithm>
#include <cstring>

#include "runtime/kv_impl.h"
#include "tiers/io/checksum.h"
#include "tiers/record.h"

namespace thermocline {
namespace {

std::string print_of(const RecordWriter& values) {
  return checksum_text(page_checksum(values.bytes(), 0));
}

std::string layers_fact(std::span<const LayerSpec> layers) {
  RecordWriter values;
  for (const LayerSpec& layer : layers)
    for (const std::uint32_t value :
         {layer.q_heads, layer.kv_heads, layer.key_dim, layer.value_dim, layer.window})
      values.value(value);
  return std::to_string(layers.size()) + " layers, " + print_of(values);
}

std::string rotation_fact(std::span<const LayerSpec> layers) {
  RecordWriter values;
  for (const LayerSpec& layer : layers) {
    values.value(static_cast<std::uint32_t>(layer.rope.pairs));
    values.value(layer.rope.magnitude);
    values.list(std::span<const float>(layer.rope.inverse_frequency));
  }
  return print_of(values);
}

std::string query_powers_fact(std::span<const LayerSpec> layers) {
  RecordWriter values;
  for (const LayerSpec& layer : layers)
    values.list(std::span<const std::int8_t>(layer.query_powers));
  return print_of(values);
}

// [heads][rows] records, to the first rows of a store.
void put_rows(std::span<const std::byte> bytes, const RowLayout& layout, std::uint32_t heads,
              std::uint32_t rows, const RawStore* store) {
  const std::size_t head_bytes = std::size_t{rows} * layout.bytes();
  for (std::uint32_t h = 0; h < heads && rows > 0; ++h)
    std::memcpy(store->row(h, 0), bytes.data() + h * head_bytes, head_bytes);
}

}  // namespace

std::vector<SessionFact> KvCache::Impl::facts_of(const CacheOptions& options,
                                                 const Method& method) {
  std::vector<SessionFact> facts = options.session.facts;
  facts.push_back({"layers", layers_fact(options.layers)});
  facts.push_back({"rotation", rotation_fact(options.layers)});
  facts.push_back({"method", method.choices});
  if (method.balances()) facts.push_back({"query powers", query_powers_fact(options.layers)});
  return facts;
}

Status KvCache::Impl::check_facts(const CacheOptions& options, const Method& method,
                                  std::span<const SessionFact> held) {
  const std::string name = "--session " + options.session.path;
  for (const SessionFact& due : facts_of(options, method)) {
    const auto found = std::find_if(held.begin(), held.end(),
                                    [&](const SessionFact& fact) { return fact.name == due.name; });
    if (found == held.end())
      return fail(ErrorCode::invalid_argument, name, ": it does not say its ", due.name,
                  ", which here is ", due.value, ": name another file");
    if (found->value != due.value)
      return fail(ErrorCode::invalid_argument, name, " is of ", due.name, " ", found->value,
                  ", and this run's is ", due.value,
                  due.name == "rotation" ? ": say --rope-scaling, --rope-freq-scale and "
                                           "--rope-freq-base as then, or name another file"
                                         : ": run it as then, or name another file");
  }
  return {};
}

Status KvCache::Impl::open_session() {
  const std::vector<std::byte> bytes = table->take_manifest();
  if (bytes.empty()) return {};
  const std::string name = session_name();
  TL_TRY_ASSIGN(saved_memory, budget->reserve(Tier::host, Purpose::sealing, bytes.size()));
  TL_TRY_ASSIGN(SessionManifest manifest, SessionManifest::decode(bytes, name));
  TL_TRY(check_facts(options, method, manifest.facts));
  saved = std::move(manifest);
  return {};
}

Result<Run> KvCache::Impl::read_run(LayerId l, const PageTable::Record& record, const Run* before,
                                    std::vector<Gathered>* waiting) {
  TL_TRY_ASSIGN(PageTable::Restored restored, table->restore(record));
  RecordReader in(restored.more, session_name() + ": record at " + std::to_string(record.offset));
  if (restored.segment->layer != l)
    return in.corrupt("layer", "is ", index(restored.segment->layer), ", and layer ", index(l),
                      " refers to it");
  TL_TRY(load_fits(l, before ? before->rows.get() : nullptr, &in, restored.segment, waiting));
  Run run;
  run.rows = std::move(restored.segment);
  TL_TRY_ASSIGN(Reservation memory, reserve_index(l, run.rows->rows));
  TL_TRY_ASSIGN(Formation formation,
                method.select->load(shape(l), spec(l).kv_heads, run.rows->rows, &in));
  TL_TRY(in.end());
  TL_TRY(attach(l, std::move(formation), std::move(memory), &run));
  return run;
}

// Where a tail of `length` positions may begin: append() and attention count on it.
bool KvCache::Impl::tail_may_begin(LayerId l, std::uint32_t tail_first,
                                   std::uint32_t length) const {
  const std::uint32_t window = spec(l).window;
  if (window == 0) return tail_first == method.tail_begin(length);
  // A window's rows go now and then, and never those that the next query sees.
  if (tail_first > 0 && (tail_first > length || length - tail_first < window)) return false;
  return length - tail_first + kMaxStepRows <= plan.layers[index(l)].tail_capacity;
}

// The runs follow each other from the sinks to the tail, cut where a sealing cuts.
Status KvCache::Impl::restore_layer(LayerId l, const SessionManifest::Layer& from,
                                    std::uint32_t length, LayerState* layer,
                                    std::vector<Gathered>* waiting) {
  const CachePlan::Layer& planned = plan.layers[index(l)];
  const std::uint32_t heads = spec(l).kv_heads;
  const auto refuse = [&](const auto&... what) {
    return fail(ErrorCode::corrupt, session_name(), ": layer ", index(l), " ", what...);
  };
  if (!tail_may_begin(l, from.tail_first, length))
    return refuse("has a tail from ", from.tail_first, " in a timeline of ", length);
  const std::uint32_t sinks = std::min(length, planned.sinks);
  const std::uint32_t tail = length > from.tail_first ? length - from.tail_first : 0;
  const std::size_t row_bytes = std::size_t{planned.raw.bytes()} * heads;
  if (from.sinks.size() != row_bytes * sinks || from.tail.size() != row_bytes * tail)
    return refuse("has ", from.sinks.size(), " bytes of sinks and ", from.tail.size(),
                  " of tail, for ", sinks, " and ", tail, " rows");
  std::uint32_t next = planned.sinks;
  for (const PageTable::Record& record : from.runs) {
    const Run* const before = layer->runs.empty() ? nullptr : &layer->runs.back();
    TL_TRY_ASSIGN(Run run, read_run(l, record, before, waiting));
    if (run.rows->first_position != next || run.rows->rows > from.tail_first - next)
      return refuse("has a run of ", run.rows->rows, " rows from ", run.rows->first_position,
                    ", and one from ", next, " to at most ", from.tail_first, " was due");
    const std::uint32_t in_cell = (next - planned.sinks) % method.cell_rows();
    if (run.rows->rows % method.seal_rows() != 0 || run.rows->rows > method.cell_rows() - in_cell)
      return refuse("has a run of ", run.rows->rows, " rows from ", next,
                    ", and the method cuts every ", method.seal_rows(), " to ", method.cell_rows());
    next += run.rows->rows;
    layer->runs.push_back(std::move(run));
  }
  if (planned.seals && next != from.tail_first)
    return refuse("has rows sealed up to ", next, " and a tail from ", from.tail_first);
  if (!planned.seals && !layer->runs.empty()) return refuse("has sealed rows, and seals none");
  put_rows(from.sinks, planned.raw, heads, sinks, &layer->sinks);
  put_rows(from.tail, planned.raw, heads, tail, &layer->tail);
  layer->tail_first = from.tail_first;
  return {};
}

// Layers that share a selection, which names segments by number, have to be cut alike.
Status KvCache::Impl::check_cut_alike(const TimelineState& state) const {
  const auto rows_of = [](const Run& run) { return run.rows->rows; };
  for (const std::vector<std::uint32_t>& together : joining)
    for (const std::uint32_t l : together)
      if (!std::ranges::equal(state.layers[l].runs, state.layers[together.front()].runs, {},
                              rows_of, rows_of))
        return fail(ErrorCode::corrupt, session_name(), ": layer ", l,
                    " is cut into other segments than layer ", together.front(),
                    ", whose selection it shares");
  return {};
}

Result<TimelineId> KvCache::Impl::resume() {
  if (!saved)
    return fail(ErrorCode::not_found, options.session.path.empty()
                                          ? "resume() of a cache without a session"
                                          : session_name() + " holds no session yet");
  const Reservation memory = std::move(saved_memory);
  const SessionManifest from = std::move(*saved);
  saved.reset();
  if (rows.empty()) {  // of a prefill that is over: planned to be gone by now
    span = RawStore{};
    span_memory = Reservation{};
  }
  if (from.layers.size() != options.layers.size())
    return fail(ErrorCode::corrupt, session_name(), ": it has ", from.layers.size(),
                " layers, the cache ", options.layers.size());
  if (from.length > options.max_positions)
    return fail(ErrorCode::exhausted, session_name(), " holds ", from.length,
                " positions, and this cache was made for ", options.max_positions, ": raise -c");
  TL_TRY_ASSIGN(const TimelineId id, new_timeline());
  std::vector<Gathered> waiting;
  for (std::uint32_t l = 0; l < options.layers.size(); ++l) {
    Status restored = restore_layer(LayerId{l}, from.layers[l], from.length,
                                    &layer_state(id, LayerId{l}), &waiting);
    if (!restored) {
      end(id);
      return tl::unexpected(std::move(restored).error());
    }
  }
  if (Status alike = check_cut_alike(timeline(id)); !alike) {
    end(id);
    return tl::unexpected(std::move(alike).error());
  }
  TL_CHECK(waiting.empty());  // runs from sinks to tail in each layer, alike where they share a fit
  timeline(id).length = from.length;
  budget->restart_peak(Tier::disk, Purpose::saved);  // it was all that is rows and index now
  return id;
}

Status KvCache::Impl::leave_session() {
  if (options.session.path.empty())
    return fail(ErrorCode::invalid_argument, "leave_session() of a cache without a session");
  if (saved)
    return fail(ErrorCode::invalid_argument, "leave_session() before what is saved was resumed");
  return table->stop_keeping();
}

Status KvCache::Impl::save(TimelineId id, const SessionText& text) {
  if (!table->keeps())
    return fail(ErrorCode::invalid_argument, "save() of a cache without a session",
                options.session.path.empty() ? "" : ": it has left it");
  if (!rows.empty())
    return fail(ErrorCode::invalid_argument,
                "save() in the middle of a step: commit() or rollback() ends it");
  const TimelineState& state = timeline(id);
  if (!text.tokens.empty() && text.tokens.size() < state.length)
    return fail(ErrorCode::invalid_argument, "save() of ", text.tokens.size(),
                " tokens with a timeline of ", state.length, " positions");
  ManifestView view{
      table.get(), facts_of(options, method), {options.method, {}}, text, state.length, {}};
  view.method.overrides = options.method_overrides;
  std::size_t count = 0;
  for (const LayerState& layer : state.layers) count += layer.runs.size();
  TL_TRY_ASSIGN(const Reservation list,
                budget->reserve(Tier::host, Purpose::sealing, count * sizeof(const Segment*)));
  std::vector<const Segment*> segments;
  segments.reserve(count);
  for (std::uint32_t l = 0; l < options.layers.size(); ++l) {
    const LayerState& layer = state.layers[l];
    const std::uint32_t sinks = std::min(state.length, plan.layers[l].sinks);
    view.layers.push_back({layer.tail_first, layer.sinks.view(0, sinks),
                           layer.tail.view(layer.tail_first, state.tail_rows(layer)), layer.runs});
    for (const Run& run : layer.runs) segments.push_back(run.rows.get());
  }
  return table->publish([&](RecordWriter* out) { view.write(out); }, segments);
}

}  // namespace thermocline
