#include "runtime/kv_cache.h"

#include <algorithm>
#include <cmath>

#include "runtime/kv_impl.h"
#include "runtime/memory_usage.h"
#include "tiers/topology.h"

namespace thermocline {
Timeline::Timeline(Timeline&& other) noexcept : cache_(other.cache_), id_(other.id_) {
  other.cache_ = nullptr;
}
Timeline& Timeline::operator=(Timeline&& other) noexcept {
  if (this == &other) return *this;
  if (cache_) cache_->impl_->end(id_);
  cache_ = other.cache_;
  id_ = other.id_;
  other.cache_ = nullptr;
  return *this;
}
Timeline::~Timeline() {
  if (cache_) cache_->impl_->end(id_);
}
std::uint32_t Timeline::length() const { return cache_ ? cache_->impl_->timeline(id_).length : 0; }
Result<Timeline> Timeline::fork() const {
  if (!cache_) return fail(ErrorCode::invalid_argument, "fork() of a timeline of no cache");
  TL_TRY_ASSIGN(const TimelineId id, cache_->impl_->fork(id_));
  return Timeline(cache_, id);
}
Status Timeline::truncate(std::uint32_t length) {
  if (!cache_) return fail(ErrorCode::invalid_argument, "truncate() of a timeline of no cache");
  return cache_->impl_->truncate(id_, length);
}

KvCache::KvCache(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
KvCache::~KvCache() {
  impl_->rollback();
  for (const auto& timeline : impl_->timelines) TL_CHECK(!timeline);  // a Timeline outlived us
}

Result<std::unique_ptr<KvCache>> KvCache::create(const CacheOptions& options,
                                                 const Workers& workers, const CpuTable& cpu,
                                                 Budget* whole) {
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->workers = &workers;
  impl->cpu = &cpu;
  impl->of_engine = whole;
  TL_TRY(impl->open());
  return std::unique_ptr<KvCache>(new KvCache(std::move(impl)));
}

Result<std::unique_ptr<KvCache>> KvCache::create(const CacheOptions& options, int threads,
                                                 const std::string& isa) {
  TL_TRY_ASSIGN(const CpuTable* cpu, choose_cpu_table(isa));
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->own_workers = std::make_unique<Workers>(threads);
  impl->workers = impl->own_workers.get();
  impl->cpu = cpu;
  TL_TRY(impl->open());
  return std::unique_ptr<KvCache>(new KvCache(std::move(impl)));
}

Result<MemoryPlan> KvCache::plan(const CacheOptions& options, int threads, const Budget* whole) {
  TL_TRY_ASSIGN(const CpuTable* cpu, choose_cpu_table("auto"));
  TL_TRY_ASSIGN(const Method method, load_method(options.method, options.method_directory,
                                                 options.method_overrides, *cpu));
  TL_TRY_ASSIGN(const Topology machine, read_topology());
  TL_TRY_ASSIGN(const CachePlan plan, make_plan(options, method, Workers::usable(threads),
                                                machine.available_bytes, whole));
  if (!options.session.path.empty())
    if (const Result<SavedSession> saved = read_session(options.session.path))
      TL_TRY(Impl::check_facts(options, method, saved->facts));
  PageTableOptions pages;
  pages.stores = plan.stores;
  pages.io_backend = options.tiers.io_backend;
  MemoryPlan lines = plan.lines();
  TL_TRY_ASSIGN(lines.notes, PageTable::probe(pages));
  const std::vector<std::string> of_plan = plan.notes();
  lines.notes.insert(lines.notes.end(), of_plan.begin(), of_plan.end());
  return lines;
}

Result<Timeline> KvCache::start() {
  TL_TRY_ASSIGN(const TimelineId id, impl_->new_timeline());
  return Timeline(this, id);
}
Status KvCache::copy(const Timeline& from, const Timeline& into, const StopAsked& stop) {
  if (!from.cache() || from.cache() == this || into.cache() != this)
    return fail(ErrorCode::invalid_argument,
                "copy() takes a timeline of another cache and one of this");
  return impl_->copy(*from.cache()->impl_, from.id(), into.id(), stop);
}
Status KvCache::read(const Timeline& timeline, LayerId layer, std::uint32_t first,
                     MatView<float> keys, MatView<float> values) {
  if (timeline.cache() != this)
    return fail(ErrorCode::invalid_argument, "read() of a timeline of another cache");
  return impl_->read(timeline.id(), layer, first, keys, values);
}
void KvCache::observe(AttendObserver* observer) { impl_->observer = observer; }
Result<std::vector<SessionFact>> KvCache::session_facts(const CacheOptions& options) {
  TL_TRY_ASSIGN(const CpuTable* cpu, choose_cpu_table("auto"));
  TL_TRY_ASSIGN(const Method method, load_method(options.method, options.method_directory,
                                                 options.method_overrides, *cpu));
  return Impl::facts_of(options, method);
}
const SessionText* KvCache::saved() const { return impl_->saved ? &impl_->saved->text : nullptr; }
Result<Timeline> KvCache::resume() {
  TL_TRY_ASSIGN(const TimelineId id, impl_->resume());
  return Timeline(this, id);
}
Status KvCache::save(const Timeline& timeline, const SessionText& text) {
  if (timeline.cache() != this)
    return fail(ErrorCode::invalid_argument, "save() of a timeline of another cache");
  return impl_->save(timeline.id(), text);
}
Status KvCache::leave_session() { return impl_->leave_session(); }
Status KvCache::begin(std::span<const Token> rows, Pass pass) { return impl_->begin(rows, pass); }
Status KvCache::append(LayerId layer, MatView<const float> keys, MatView<const float> values) {
  return impl_->append(layer, keys, values);
}
Status KvCache::attend(LayerId layer, MatView<const float> queries, MatView<float> out,
                       const StopAsked& stop) {
  TL_TRY(impl_->check_attend(layer, queries, out));
  const Stopwatch watch(&impl_->counted.attend_ms);
  Impl::Stage& stage = impl_->stages[index(layer)];
  stage = Impl::Stage::failed;
  TL_TRY(impl_->pass == Pass::prefill ? impl_->prefill_attend(layer, queries, out, stop)
                                      : impl_->attend(layer, queries, out));
  stage = Impl::Stage::attended;
  return {};
}
bool KvCache::stays_there(LayerId layer) const {
  return index(layer) < impl_->plan.layers.size() && impl_->stays_there(layer);
}
Status KvCache::attend_there(LayerId layer, const RowsThere& rows) {
  TL_TRY(impl_->check_there(layer));
  const Stopwatch watch(&impl_->counted.attend_ms);
  Impl::Stage& stage = impl_->stages[index(layer)];
  stage = Impl::Stage::failed;
  TL_TRY(impl_->attend_there(layer, rows));
  stage = Impl::Stage::attended;
  return {};
}
Status KvCache::commit() { return impl_->commit(); }
void KvCache::rollback() { impl_->rollback(); }
std::span<const LayerSpec> KvCache::layers() const { return impl_->options.layers; }
std::uint32_t KvCache::max_positions() const { return impl_->options.max_positions; }
std::span<const std::string> KvCache::notes() const { return impl_->notes; }

CacheReport KvCache::report() const {
  CacheReport of_tiers;
  static_cast<TierCounters&>(of_tiers) = impl_->table->counters();
  return sum(impl_->counted, of_tiers);
}

std::vector<RankReport> KvCache::ranks(const Timeline& timeline) const {
  if (timeline.cache() != this) return {};
  return impl_->ranks(timeline.id());
}

std::optional<DiskReadCost> KvCache::disk_read_cost() const {
  if (!any_in_pages(impl_->plan.stores)) return std::nullopt;
  const ReadCost& cost = impl_->table->read_cost();
  return DiskReadCost{cost.read_us, cost.bytes_per_us, cost.measured};
}

MemoryPlan KvCache::usage() const {
  MemoryPlan usage = usage_of(*impl_->budget);
  const std::uint64_t workspace = impl_->workspace_bytes();
  if (workspace > 0) {
    usage.lines.push_back({kWorkspace, "attention", workspace, workspace});
    usage.peak_bytes[kWorkspace] = workspace;
  }
  return usage;
}

std::uint64_t KvCache::Impl::workspace_bytes() const {
  std::uint64_t bytes = (steady_states.capacity() + partials.capacity()) * sizeof(AttnState) +
                        tile_positions.capacity() * sizeof(tile_positions[0]);
  for (const Angles& a : angles) bytes += a.tables.bytes();
  for (const Scratch* one : {&query_scratch, &partial_scratch, &score_scratch, &tile_scratch,
                             &tile_query_scratch, &tile_state_scratch})
    bytes += one->bytes();
  return bytes;
}

Status KvCache::Impl::open() {
  TL_TRY_ASSIGN(method, load_method(options.method, options.method_directory,
                                    options.method_overrides, *cpu));
  TL_TRY_ASSIGN(const Topology machine, read_topology());
  TL_TRY_ASSIGN(plan,
                make_plan(options, method, workers->threads(), machine.available_bytes, of_engine));
  if (of_engine) {
    TL_TRY_ASSIGN(budget, Budget::share(of_engine, plan.needed_bytes(), plan.stores.bytes));
  } else {
    budget = std::make_unique<Budget>(plan.stores.bytes);
  }

  for (std::uint32_t l = 0; l < options.layers.size(); ++l) {
    if (!plan.layers[l].seals) continue;
    if (joining.empty() || !method.select->facts().shares) joining.emplace_back();
    joining.back().push_back(l);
  }

  PageTableOptions pages;
  for (std::size_t l = 0; l < options.layers.size(); ++l)
    pages.layers.push_back({plan.layers[l].sealed, options.layers[l].kv_heads,
                            plan.layers[l].in_pages() ? plan.row_cache_rows : 0,
                            plan.layers[l].row_numbers()});
  pages.stores = plan.stores;
  pages.io_backend = options.tiers.io_backend;
  if (plan.staging_bytes > 0) pages.staging_bytes = plan.staging_bytes;
  pages.writing_bytes = plan.writing_bytes;
  TL_TRY_ASSIGN(table, PageTable::create(pages, budget.get()));
  notes.assign(table->notes().begin(), table->notes().end());
  const std::vector<std::string> of_plan = plan.notes();
  notes.insert(notes.end(), of_plan.begin(), of_plan.end());
  reader = std::make_unique<Reader>(table.get());
  TL_TRY(open_device_attention());
  if (table->keeps()) TL_TRY(open_session());

  for (const LayerSpec& layer : options.layers) {
    balances.push_back(method.balances() ? KeyBalance::of(layer) : KeyBalance());
    std::uint32_t a = 0;
    while (a < angles.size() && !(*angles[a].rope == layer.rope)) ++a;
    if (a == angles.size())
      angles.push_back(
          {&layer.rope,
           Rotation::of(layer.rope.inverse_frequency, layer.rope.pairs, layer.rope.magnitude),
           {}});
    angles_of_layer.push_back(a);
  }
  return {};
}

Status KvCache::Impl::begin(std::span<const Token> step_rows, Pass step_pass) {
  if (!rows.empty())
    return fail(ErrorCode::invalid_argument,
                "begin() in the middle of a step: commit() or rollback() ends it");
  if (step_rows.empty()) return fail(ErrorCode::invalid_argument, "a step needs at least one row");
  if (step_pass == Pass::decode && step_rows.size() > kMaxStepRows)
    return fail(ErrorCode::invalid_argument, "a decode step of ", step_rows.size(),
                " rows: it takes ", kMaxStepRows, " at most, a prefill ", kSpanRows);
  const bool reads_all = step_pass != Pass::decode;
  if (reads_all && step_rows.size() > kSpanRows)
    return fail(ErrorCode::invalid_argument, "a prefill of ", step_rows.size(), " rows: it takes ",
                kSpanRows, " at most; commit a longer text span by span");
  advanced.assign(timelines.size(), 0);
  for (const Token& row : step_rows) {
    const std::uint32_t t = index(row.timeline);
    if (t >= timelines.size() || !timelines[t])
      return fail(ErrorCode::invalid_argument, "row of a timeline that does not exist");
    const std::uint32_t expected = timelines[t]->length + advanced[t];
    if (row.position != expected)
      return fail(ErrorCode::invalid_argument, "row at position ", row.position,
                  " of a timeline whose next position is ", expected);
    if (row.position >= options.max_positions)
      return fail(ErrorCode::exhausted, "position ", row.position, " is beyond the ",
                  options.max_positions, " positions that this cache was made for: raise -c");
    ++advanced[t];
  }
  if (reads_all && advanced[index(step_rows[0].timeline)] != step_rows.size())
    return fail(ErrorCode::invalid_argument, "a prefill is of one timeline's rows");
  const std::uint32_t first = step_rows[0].position;
  if (step_pass == Pass::alone && first > 0 && first < method.sink)
    return fail(ErrorCode::invalid_argument, "a text of its own from position ", first,
                ", among the ", method.sink, " sinks: the one before it is shorter than they are");
  if (step_pass == Pass::decode) TL_TRY(open_decode(step_rows.size()));
  TL_TRY(compute_angles(step_rows));
  pass = reads_all ? Pass::prefill : Pass::decode;
  sees_from = step_pass == Pass::alone ? first : 0;
  rows.assign(step_rows.begin(), step_rows.end());
  stages.assign(options.layers.size(), Stage::due);
  for (KeptSelection& of_last_step : shared_selections) of_last_step.forget();
  return {};
}

Status KvCache::Impl::compute_angles(std::span<const Token> step_rows) {
  for (Angles& a : angles) {
    const std::size_t pairs = a.rope->inverse_frequency.size();
    TL_TRY_ASSIGN(a.cosine, a.tables.floats(2 * step_rows.size() * pairs));
    a.sine = a.cosine + step_rows.size() * pairs;
    workers->parallel(step_rows.size(), 256, [&](std::size_t first, std::size_t last) {
      for (std::size_t r = first; r < last; ++r)
        for (std::size_t i = 0; i < pairs; ++i) {
          const double angle =
              static_cast<double>(step_rows[r].position) * a.rope->inverse_frequency[i];
          a.cosine[r * pairs + i] = static_cast<float>(std::cos(angle)) * a.rope->magnitude;
          a.sine[r * pairs + i] = static_cast<float>(std::sin(angle)) * a.rope->magnitude;
        }
    });
  }
  return {};
}

void KvCache::Impl::rotate(LayerId l, std::size_t row, float* head) const {
  const Angles& a = angles[angles_of_layer[index(l)]];
  const std::size_t pairs = a.rope->inverse_frequency.size();
  if (pairs == 0) return;
  cpu->dense.rope(a.cosine + row * pairs, a.sine + row * pairs, pairs, spec(l).rope.pairs, head);
}

void KvCache::Impl::turn_key(LayerId l, std::size_t row, float* key) const {
  rotate(l, row, key);
  balances[index(l)].keep(key);
}

void KvCache::Impl::turn_query(LayerId l, std::size_t row, float* query) const {
  rotate(l, row, query);
  balances[index(l)].ask(query);
  cpu->dense.scale(spec(l).scale, spec(l).key_dim, query);
}

void KvCache::Impl::append_row(LayerId l, std::size_t row, std::uint32_t head, const float* key,
                               const float* value, std::byte* record) const {
  const LayerSpec& s = spec(l);
  alignas(64) float rotated[kMaxHeadSize];
  std::copy_n(key + head * s.key_dim, s.key_dim, rotated);
  turn_key(l, row, rotated);
  cpu->dense.to_half(rotated, s.key_dim, record);
  cpu->dense.to_half(value + head * s.value_dim, s.value_dim, record + s.key_dim * 2);
}

Status KvCache::Impl::append(LayerId l, MatView<const float> keys, MatView<const float> values) {
  TL_TRY(check_append(l, keys, values));
  if (pass == Pass::prefill) TL_TRY(open_span(l));
  const CachePlan::Layer& planned = plan.layers[index(l)];
  const std::uint32_t heads = spec(l).kv_heads;
  workers->parallel(rows.size(), 64, [&](std::size_t first, std::size_t last) {
    for (std::size_t r = first; r < last; ++r) {
      const LayerState& layer = layer_state(rows[r].timeline, l);
      const std::uint32_t position = rows[r].position;
      for (std::uint32_t h = 0; h < heads; ++h) {
        const RawStore& tail = pass == Pass::prefill ? span : layer.tail;
        std::byte* record = position < planned.sinks ? layer.sinks.row(h, position)
                                                     : tail.row(h, position - layer.tail_first);
        append_row(l, r, h, keys.row(r), values.row(r), record);
      }
    }
  });
  stages[index(l)] = Stage::appended;
  return {};
}

// First everything that can fail, for all timelines and layers; then what cannot.
Status KvCache::Impl::commit() {
  TL_TRY(check_commit());
  if (Status back = take_back_there(); !back) {
    rollback();
    return back;
  }
  const auto layers = static_cast<std::uint32_t>(options.layers.size());
  if (pass == Pass::decode) {  // prefill has settled each layer when it was attended
    for (std::uint32_t t = 0; t < advanced.size(); ++t) {
      if (advanced[t] == 0) continue;
      const std::uint32_t length = timelines[t]->length + advanced[t];
      for (std::uint32_t i = 0; i < layers; ++i) {
        const LayerState& layer = timelines[t]->layers[i];
        if (length <= layer.tail_first) continue;
        if (rows_to_leave(LayerId{i}, layer.tail_first, length) == 0) continue;
        const RawRows raw = layer.tail.view(layer.tail_first, length - layer.tail_first);
        Status settled = settle(LayerId{i}, raw, layer.runs, Pending::Tail::behind,
                                &pending_of(t, i), tail_votes(layer));
        if (!settled) {
          rollback();
          return settled;
        }
      }
      if (Status joined = join_runs(t); !joined) {
        rollback();
        return joined;
      }
    }
  }
  if (Status sealed = await_sealed(); !sealed) {
    rollback();
    return sealed;
  }
  for (std::uint32_t t = 0; t < advanced.size(); ++t) {
    if (advanced[t] == 0) continue;
    for (std::uint32_t i = 0; i < layers; ++i) make_room(t, i, timelines[t]->layers[i].runs.size());
  }
  TL_CHECK(gathered.empty());  // no row is to be read without its fit
  if (pass == Pass::decode) ++counted.steps;
  for (std::uint32_t t = 0; t < advanced.size(); ++t) {
    if (advanced[t] == 0) continue;
    timelines[t]->length += advanced[t];
    for (std::uint32_t i = 0; i < layers; ++i) take_over(t, i, timelines[t]->length);
  }
  rows.clear();
  return {};
}

void KvCache::Impl::make_room(std::uint32_t timeline, std::uint32_t layer_index, std::size_t kept) {
  std::vector<Run>& runs = timelines[timeline]->layers[layer_index].runs;
  const std::size_t needed = kept + pending_of(timeline, layer_index).new_runs.size();
  if (needed > runs.capacity()) runs.reserve(std::max(needed, 2 * runs.capacity()));
}

void KvCache::Impl::take_over(std::uint32_t timeline, std::uint32_t layer_index,
                              std::uint32_t length) noexcept {
  Pending& p = pending_of(timeline, layer_index);
  LayerState& layer = timelines[timeline]->layers[layer_index];
  layer.there.cut(length);
  take_over_selections(&layer, !p.new_runs.empty() || p.joined);
  if (layer.votes.made) {
    std::swap(layer.votes.now, layer.votes.next);
    layer.votes.made = false;
  }
  if (p.joined) {
    counted.rows_joined += p.joined->run.rows->rows;
    const auto first = layer.runs.begin() + static_cast<std::ptrdiff_t>(p.joined->of.first);
    *first = std::move(p.joined->run);
    layer.runs.erase(first + 1, first + static_cast<std::ptrdiff_t>(p.joined->of.count));
  }
  std::move(p.new_runs.begin(), p.new_runs.end(), std::back_inserter(layer.runs));
  if (p.tail == Pending::Tail::behind) {
    const std::uint32_t gone = p.tail_first - layer.tail_first;
    const std::uint32_t rows_held = length - layer.tail_first;
    layer.tail.copy(layer.tail.view(layer.tail_first, rows_held), gone, rows_held - gone, 0);
    layer.forget_votes(gone);
  } else if (p.tail == Pending::Tail::spare) {
    std::swap(layer.tail, spare_tails[layer_index]);
  }
  if (p.tail != Pending::Tail::as_it_is) layer.tail_first = p.tail_first;
  p = Pending{};
}

void KvCache::Impl::take_over_selections(LayerState* layer, bool sealed) noexcept {
  for (SelectionMemory& of_head : layer->selections) {
    if (of_head.next.made) std::swap(of_head.now, of_head.next);
    of_head.next.forget();
    if (sealed) of_head.now.forget();
  }
}

void KvCache::Impl::rollback() {
  // What is queued of it runs, lest it does later. Whether it did is not known where that fails: of
  // slots that were asked in it nothing is.
  if (there_begun > 0) static_cast<void>(device_step->finish());
  for (std::size_t i = 0; i < there_begun; ++i)
    for (const Token& row : rows)
      if (timelines[index(row.timeline)])
        layer_state(row.timeline, there_layers[i].layer).slotted.forget();
  there_begun = 0;
  for (Pending& p : pending) p = Pending{};
  gathered.clear();
  for (const auto& timeline : timelines) {
    if (!timeline) continue;
    for (LayerState& layer : timeline->layers) {
      for (SelectionMemory& of_head : layer.selections) of_head.next.forget();
      layer.votes.made = false;
      layer.there.cut(timeline->length);
    }
  }
  rows.clear();
  (void)await_sealed();  // of what is gone nobody is told, but another thread may come next
}

}  // namespace thermocline
