#include "runtime/cache_plan.h"

#include <algorithm>

#include "kernels/base/buffer.h"
#include "runtime/query_tiles.h"
#include "runtime/timeline_state.h"
#include "tiers/budget.h"
#include "tiers/codec/raw.h"
#include "tiers/page_table.h"
#include "tiers/row_cache.h"
#include "tiers/size_text.h"
#include "tiers/topology.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kStagingBytes = std::uint64_t{8} << 20;

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
  return {};
}

std::uint64_t blocks_of(std::uint32_t rows) {
  return (std::uint64_t{rows} + kBlockRows - 1) / kBlockRows;
}

// What a session keeps of sealed rows beside them: index, summaries, positions and checksums, whole
// pages a segment.
void plan_records(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                  const CachePlan::Layer& layer, std::uint64_t longest, CachePlan* plan) {
  const HeadShape shape{spec.q_heads / spec.kv_heads, spec.key_dim, spec.value_dim};
  const std::uint64_t of_block = method.select->index_bytes(shape, kBlockRows) +
                                 method.select->summary_bytes(shape, kBlockRows) +
                                 kBlockRows * sizeof(Segment::offset[0]) +
                                 (layer.sealed.bytes() * kBlockRows / kPageBytes + 1) * 8;
  const std::uint64_t segments = options.max_positions / method.seal_rows() + 1;
  plan->records_bytes +=
      options.max_timelines *
      (layer.rows / kBlockRows * spec.kv_heads * of_block + segments * 2 * kPageBytes);
  plan->published_bytes += segments * (2 * sizeof(Extent) + sizeof(PageTable::Record));
  // One segment's record: as it is put together here, in the page table, and as pages.
  plan->saving_bytes =
      std::max(plan->saving_bytes,
               3 * (blocks_of(static_cast<std::uint32_t>(longest)) * spec.kv_heads * of_block +
                    2 * kPageBytes));
}

// What full attention under a method that keeps rows takes, beside sinks and tail.
void plan_sealed(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                 CachePlan::Layer* layer, CachePlan* plan) {
  const HeadShape shape{spec.q_heads / spec.kv_heads, spec.key_dim, spec.value_dim};
  // Segments are whole blocks of any number, and together blocks take no more than alone: so this
  // holds however the rows come to be cut.
  const std::uint64_t blocks = options.max_timelines * blocks_of(options.max_positions);
  layer->rows = static_cast<std::uint32_t>(blocks * kBlockRows);
  std::uint64_t rows_bytes = std::uint64_t{options.max_positions} * options.max_timelines *
                             layer->sealed.bytes() * spec.kv_heads;
  if (plan->home.reach == Reach::pages) {
    // Each head of a segment begins a page.
    if (layer->sealed.bytes() * kBlockRows % kPageBytes != 0) {
      const std::uint64_t segments = options.max_positions / method.seal_rows() + 1;
      rows_bytes += options.max_timelines * segments * spec.kv_heads * kPageBytes;
    }
    plan->tables_bytes += (rows_bytes + kPageBytes - 1) / kPageBytes * sizeof(std::uint64_t);
  }
  plan->rows_bytes += rows_bytes;
  if (method.select->facts().order == RowOrder::own)
    plan->tables_bytes += std::uint64_t{spec.kv_heads} * layer->rows * sizeof(Segment::offset[0]);
  const std::uint64_t longest =
      std::min(method.cell_rows(), method.tail_begin(options.max_positions) - method.sink);
  const std::uint64_t head_bytes = longest * layer->sealed.bytes();
  const std::uint64_t page_bytes =
      plan->home.reach == Reach::pages ? round_up(head_bytes, kPageBytes) : std::uint64_t{0};
  plan->coding_bytes = std::max(plan->coding_bytes, spec.kv_heads * head_bytes);
  plan->writing_bytes = std::max(plan->writing_bytes, spec.kv_heads * page_bytes);
  if (!options.session.path.empty()) plan_records(options, method, spec, *layer, longest, plan);
  plan->index_bytes += spec.kv_heads * blocks *
                       (method.select->index_bytes(shape, kBlockRows) +
                        method.select->summary_bytes(shape, kBlockRows));
}

// Memory that attention computes in, in the layer that takes most of it.
void plan_workspace(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                    const CachePlan::Layer& layer, int threads, CachePlan* plan) {
  const QueryTiles tiles = QueryTiles::cut(spec, 0, std::min(options.max_positions, kSpanRows));
  plan->tile_query_bytes = std::max<std::uint64_t>(
      plan->tile_query_bytes, tiles.count * tiles.query_floats() * sizeof(float));
  plan->tile_state_bytes = std::max<std::uint64_t>(
      plan->tile_state_bytes, tiles.count * tiles.state_floats() * sizeof(float));
  plan->tile_scratch_bytes = std::max<std::uint64_t>(plan->tile_scratch_bytes,
                                                     tiles.scratch_floats(threads) * sizeof(float));

  const auto folds_of = [](std::uint64_t rows) { return (rows + kFoldRows - 1) / kFoldRows; };
  std::uint64_t folds = folds_of(layer.sinks) + folds_of(layer.tail_capacity);
  if (layer.seals) {
    // The shortest segments make the most folds, of which a selector may read all, and all of their
    // summaries: fewer rows than they stand for.
    const std::uint64_t sealed = method.tail_begin(options.max_positions) - method.sink;
    const int forms = method.select->summary_bytes(tiles.heads, kBlockRows) > 0 ? 2 : 1;
    folds = std::max(folds, forms * sealed / method.seal_rows() * folds_of(method.seal_rows()));
  }
  // In each KV head the state of the whole list, and one for each fold.
  const std::uint64_t states = spec.q_heads * (1 + folds);
  plan->decode_states = std::max(plan->decode_states, states);
  plan->decode_state_floats = std::max(plan->decode_state_floats, states * spec.value_dim);
  plan->decode_query_floats =
      std::max<std::uint64_t>(plan->decode_query_floats, spec.q_heads * spec.key_dim);
}

void plan_layer(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                int threads, CachePlan* plan) {
  CachePlan::Layer layer;
  layer.raw = raw_layout(spec.key_dim, spec.value_dim);
  layer.sealed = method.compress.layout(spec.key_dim, spec.value_dim);
  layer.seals = spec.window == 0 && method.retain->keeps();
  if (spec.window == 0) {
    layer.sinks = method.sink;
    layer.tail_capacity = method.recent + method.seal_rows();
  } else {
    // No more than there are positions, lest a window of nearly 2^32 wraps around.
    layer.tail_capacity = std::min(spec.window, options.max_positions) + kWindowSlack;
  }
  layer.tail_capacity =
      std::min<std::uint32_t>(layer.tail_capacity, options.max_positions) + kMaxStepRows;
  plan->tail_bytes +=
      options.max_timelines *
      RawStore::bytes_for(layer.raw, spec.kv_heads, layer.tail_capacity + layer.sinks);
  plan->spare_tail_bytes += RawStore::bytes_for(layer.raw, spec.kv_heads, layer.tail_capacity);
  const std::uint32_t span = std::min(options.max_positions, kSpanRows + layer.tail_capacity);
  plan->span_bytes =
      std::max(plan->span_bytes, RawStore::bytes_for(layer.raw, spec.kv_heads, span));
  plan_workspace(options, method, spec, layer, threads, plan);
  if (layer.seals && method.tail_begin(options.max_positions) > method.sink)
    plan_sealed(options, method, spec, &layer, plan);
  plan->layers.push_back(layer);
}

// The text and the raw rows, which are published whole, one publication beside the last.
void plan_publication(const CacheOptions& options, CachePlan* plan) {
  constexpr std::uint64_t kRest = std::uint64_t{1} << 20;  // facts, the caller's note, headers
  const std::uint64_t manifest = plan->published_bytes + plan->tail_bytes / options.max_timelines +
                                 options.max_positions * sizeof(int) + kRest;
  plan->published_bytes = 2 * manifest;
  plan->saving_bytes = std::max(plan->saving_bytes, 4 * manifest);
}

// What does not depend on how much memory there is, with sealed rows at home in `home`.
Result<CachePlan> plan_layers(const CacheOptions& options, const Method& method, int threads,
                              const StoreOptions& stores, StoreFacts home) {
  CachePlan plan;
  plan.stores = stores;
  plan.home = home;
  if (any_in_pages(stores)) plan.staging_bytes = kStagingBytes;
  plan.step_rows = std::min<std::uint64_t>(options.max_timelines, kMaxStepRows);
  for (std::size_t l = 0; l < options.layers.size(); ++l) {
    TL_TRY(check_layer(options.layers[l], l));
    plan_layer(options, method, options.layers[l], threads, &plan);
  }
  if (!options.session.path.empty()) plan_publication(options, &plan);
  return plan;
}

// Of memory for a cache of rows, unasked: half of what the machine has free, and not so much that
// the disk costs more memory than it spares.
Result<std::uint64_t> automatic_row_cache(const CacheOptions& options, const Method& method,
                                          int threads, const CachePlan& plan) {
  TL_TRY_ASSIGN(const CachePlan in_memory,
                plan_layers(options, method, threads, StoreOptions{}, StoreFacts{}));
  const std::uint64_t needed = plan.host_bytes(), most = in_memory.host_bytes();
  const std::uint64_t left = plan.bytes_of(Tier::host) - needed;
  return std::min(left / 2, most > needed ? most - needed : 0);
}

// The most rows of one KV head, of all timelines: rows are numbered in 32 bits. What a plan
// multiplies them with, a layer's heads and bytes, is then far from 64 bits.
constexpr std::uint64_t kMostRows = std::uint64_t{1} << 31;
static_assert(kMostRows * kMaxHeads * 2 * kMaxHeadSize * sizeof(float) < std::uint64_t{1} << 54);

Status check_rows(const CacheOptions& options, const Method& method) {
  // Whole blocks, as plan_sealed() counts them, and what else a timeline of one position has.
  const std::uint64_t of_one =
      blocks_of(options.max_positions) * kBlockRows + method.sink + kMaxStepRows;
  std::uint64_t rows = 0;
  if (!__builtin_mul_overflow(of_one, std::uint64_t{options.max_timelines}, &rows) &&
      rows <= kMostRows)
    return {};
  return fail(ErrorCode::invalid_argument, options.max_timelines, " timelines of ",
              options.max_positions, " positions are more than the ", kMostRows,
              " rows that a KV head of a layer may have: lower -c, or have fewer timelines");
}

// What each tier may hold. Host memory, unasked: what the machine has free.
Result<StoreOptions> stores_for(const TierOptions& tiers, const SessionOptions& session) {
  TL_TRY_ASSIGN(const Topology machine, read_topology());
  StoreOptions stores;
  stores.bytes[static_cast<std::size_t>(Tier::host)] =
      tiers.host_bytes == kAutoBytes ? machine.available_bytes : tiers.host_bytes;
  stores.directory = tiers.directory;
  stores.session = session.path;
  // A session is on the disk: without a budget for it, as large as it gets.
  stores.bytes[static_cast<std::size_t>(Tier::disk)] =
      tiers.disk_bytes == 0 && !session.path.empty() ? kAutoBytes : tiers.disk_bytes;
  return stores;
}

// Where the method's sealed rows are at home.
Result<StoreFacts> home_of(const Method& method, const StoreOptions& stores) {
  Tier lowest = Tier::host;
  std::string served;
  for (const Tier tier : kAllTiers) {
    if (!reach_of(stores, tier)) continue;
    lowest = tier;
    served += (served.empty() ? "" : ", ") + std::string(name_of(tier));
  }
  const Tier home = method.place->home(lowest);
  const std::optional<Reach> reach = reach_of(stores, home);
  if (!reach)
    return fail(ErrorCode::unsupported, "place.rows = ", method.place->name(), " puts rows in the ",
                name_of(home), " tier, and this cache has stores for ", served,
                ": name another place.rows");
  return StoreFacts{home, *reach};
}

// `bytes` of memory for copies of rows on the disk, and for finding them; for no more rows than
// there can be.
void plan_row_cache(const CacheOptions& options, const Method& method, std::uint64_t bytes,
                    CachePlan* plan) {
  std::uint64_t of_row = 0, fixed = 0;  // in every layer and head that seals
  for (std::size_t l = 0; l < plan->layers.size(); ++l) {
    const CachePlan::Layer& layer = plan->layers[l];
    if (layer.rows == 0) continue;
    const std::uint64_t heads = options.layers[l].kv_heads;
    const std::uint64_t one = RowCache::table_bytes(1, layer.rows);
    of_row += heads * (layer.sealed.bytes() + RowCache::table_bytes(2, layer.rows) - one);
    fixed += heads * (one - (RowCache::table_bytes(2, layer.rows) - one));
  }
  if (of_row == 0 || bytes < fixed + of_row) return;
  const std::uint64_t sealed = method.tail_begin(options.max_positions) - method.sink;
  plan->row_cache_rows = static_cast<std::uint32_t>(
      std::min<std::uint64_t>((bytes - fixed) / of_row, sealed * options.max_timelines));
  plan->row_cache_bytes = fixed + plan->row_cache_rows * of_row;
}

}  // namespace

std::uint64_t CachePlan::host_bytes() const {
  return tail_bytes + index_bytes + sealing_bytes() + staging_bytes + tables_bytes +
         row_cache_bytes + (home.tier == Tier::host ? rows_bytes : 0);
}

std::uint64_t CachePlan::workspace_bytes() const {
  const std::uint64_t of_a_row = (decode_query_floats + decode_state_floats) * sizeof(float) +
                                 decode_states * sizeof(AttnState);
  return tile_query_bytes + tile_state_bytes + tile_scratch_bytes + step_rows * of_a_row;
}

MemoryPlan CachePlan::lines() const {
  MemoryPlan plan;
  const auto add = [&](Tier tier, Purpose purpose, std::uint64_t bytes) {
    if (bytes > 0)
      plan.lines.push_back(
          {std::string(name_of(tier)), std::string(name_of(purpose)), bytes, bytes});
  };
  for (const Tier tier : kAllTiers) {
    if (tier == home.tier) add(tier, Purpose::rows, rows_bytes);
    if (tier == home.tier && tier != Tier::host) {
      add(tier, Purpose::index, records_bytes);
      add(tier, Purpose::saved, published_bytes);
    }
    if (tier != Tier::host) continue;
    add(tier, Purpose::index, index_bytes);
    add(tier, Purpose::tail, tail_bytes);
    add(tier, Purpose::row_cache, row_cache_bytes);
    add(tier, Purpose::staging, staging_bytes);
    add(tier, Purpose::sealing, sealing_bytes());
    add(tier, Purpose::tables, tables_bytes);
  }
  plan.lines.push_back({kWorkspace, "attention", workspace_bytes(), workspace_bytes()});
  return plan;
}

Result<CachePlan> make_plan(const CacheOptions& options, const Method& method, int threads) {
  if (options.layers.empty())
    return fail(ErrorCode::invalid_argument, "a cache needs at least one layer");
  if (options.max_positions == 0 || options.max_timelines == 0)
    return fail(ErrorCode::invalid_argument,
                "a cache needs at least one position and one timeline");
  TL_TRY(check_rows(options, method));
  TL_TRY_ASSIGN(const StoreOptions stores, stores_for(options.tiers, options.session));
  TL_TRY_ASSIGN(const StoreFacts home, home_of(method, stores));
  TL_TRY_ASSIGN(CachePlan plan, plan_layers(options, method, threads, stores, home));

  const std::uint64_t needed = plan.host_bytes(), host = plan.bytes_of(Tier::host);
  if (needed > host)
    return fail(ErrorCode::exhausted, "the KV cache for ", options.max_positions,
                " positions needs ", size_text(needed), " of host memory and has ", size_text(host),
                ": raise --kv-host, ",
                options.tiers.disk_bytes > 0 ? "" : "give --kv-disk SIZE to keep rows on disk, ",
                "or lower -c");
  if (!options.session.path.empty() && (home.tier != Tier::disk || home.reach != Reach::pages))
    return fail(ErrorCode::unsupported, "place.rows = ", method.place->name(),
                " keeps rows in memory, and --session in its file: name another place.rows, or "
                "leave --session out");
  if (home.tier != Tier::host && plan.home_bytes() > plan.bytes_of(home.tier))
    return fail(ErrorCode::exhausted, "the KV cache for ", options.max_positions,
                " positions needs ", size_text(plan.home_bytes()), " on ", name_of(home.tier),
                " and ", flag_of(home.tier), " gives ", size_text(plan.bytes_of(home.tier)),
                ": raise it or lower -c");
  plan.stores.planned[static_cast<std::size_t>(home.tier)] = {plan.home_bytes(),
                                                              options.max_positions};
  if (home.reach == Reach::pages) {  // what is left over caches rows
    std::uint64_t left = host - needed;
    if (options.tiers.host_bytes == kAutoBytes) {
      TL_TRY_ASSIGN(left, automatic_row_cache(options, method, threads, plan));
    }
    plan_row_cache(options, method, left, &plan);
  }
  return plan;
}

}  // namespace thermocline
