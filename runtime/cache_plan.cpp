#include "runtime/cache_plan.h"

#include <algorithm>

#include "kernels/base/buffer.h"
#include "runtime/query_tiles.h"
#include "runtime/timeline_state.h"
#include "tiers/codec/raw.h"
#include "tiers/row_cache.h"
#include "tiers/size_text.h"
#include "tiers/topology.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kStagingBytes = std::uint64_t{8} << 20;

Status check_layer(const LayerSpec& spec, std::size_t l) {
  const auto refuse = [&](const char* what) {
    return fail(ErrorCode::invalid_argument, "layer ", l, ": ", what, " (", spec.q_heads,
                " query heads, ", spec.kv_heads, " KV heads, key size ", spec.key_dim,
                ", value size ", spec.value_dim, ")");
  };
  if (spec.kv_heads == 0 || spec.q_heads % spec.kv_heads != 0)
    return refuse("query heads must be a multiple of the KV heads");
  if (spec.q_heads > 1024) return refuse("at most 1024 query heads are supported");
  if (spec.key_dim == 0 || spec.key_dim % 16 != 0 || spec.value_dim == 0 ||
      spec.value_dim % 16 != 0 || spec.key_dim > 512 || spec.value_dim > 512)
    return refuse("head sizes must be multiples of 16, up to 512");
  if (spec.rope.inverse_frequency.size() * 2 > spec.key_dim)
    return refuse("more rotated pairs than the key size holds");
  return {};
}

std::uint64_t blocks_of(std::uint32_t rows) {
  return (std::uint64_t{rows} + kBlockRows - 1) / kBlockRows;
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
  if (plan->home == Tier::disk) {
    // Each head of a segment begins a page.
    if (layer->sealed.bytes() * kBlockRows % kPageBytes != 0) {
      const std::uint64_t segments = options.max_positions / method.seal_rows() + 1;
      rows_bytes += options.max_timelines * segments * spec.kv_heads * kPageBytes;
    }
    plan->tables_bytes += (rows_bytes + kPageBytes - 1) / kPageBytes * sizeof(std::uint64_t);
  }
  plan->rows_bytes += rows_bytes;
  if (method.select->facts().order != "position")
    plan->tables_bytes += std::uint64_t{spec.kv_heads} * layer->rows * sizeof(Segment::offset[0]);
  plan->index_bytes += spec.kv_heads * blocks *
                       (method.select->index_bytes(shape, kBlockRows) +
                        method.select->summary_bytes(shape, kBlockRows));
}

void plan_layer(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                CachePlan* plan) {
  CachePlan::Layer layer;
  layer.raw = raw_layout(spec.key_dim, spec.value_dim);
  layer.sealed = method.compress.layout(spec.key_dim, spec.value_dim);
  layer.seals = spec.window == 0 && method.retain->keeps();
  if (spec.window == 0) {
    layer.sinks = method.sink;
    layer.tail_capacity = method.recent + method.seal_rows();
  } else {
    layer.tail_capacity = spec.window + kWindowSlack;
  }
  layer.tail_capacity =
      std::min<std::uint32_t>(layer.tail_capacity, options.max_positions) + kMaxStepRows;
  plan->tail_bytes +=
      options.max_timelines *
      RawStore::bytes_for(layer.raw, spec.kv_heads, layer.tail_capacity + layer.sinks);
  plan->sealing_bytes = std::max(
      plan->sealing_bytes,
      RawStore::bytes_for(layer.raw, spec.kv_heads,
                          std::min(options.max_positions, kSpanRows) + layer.tail_capacity));
  const QueryTiles tiles = QueryTiles::cut(spec, 0, std::min(options.max_positions, kSpanRows));
  plan->workspace_bytes = std::max<std::uint64_t>(
      plan->workspace_bytes,
      tiles.count * (tiles.query_floats() + tiles.state_floats()) * sizeof(float));
  if (layer.seals && method.tail_begin(options.max_positions) > method.sink)
    plan_sealed(options, method, spec, &layer, plan);
  plan->layers.push_back(layer);
}

// What does not depend on how much memory there is.
Result<CachePlan> plan_layers(const CacheOptions& options, const Method& method) {
  CachePlan plan;
  const bool has_disk = options.tiers.disk_bytes > 0;
  plan.home = method.place->home(has_disk ? Tier::disk : Tier::host);
  if (has_disk) plan.staging_bytes = kStagingBytes;
  for (std::size_t l = 0; l < options.layers.size(); ++l) {
    TL_TRY(check_layer(options.layers[l], l));
    plan_layer(options, method, options.layers[l], &plan);
  }
  return plan;
}

// Of memory for a cache of rows, unasked: half of what the machine has free, and not so much that
// the disk costs more memory than it spares.
Result<std::uint64_t> automatic_row_cache(const CacheOptions& options, const Method& method,
                                          const CachePlan& plan) {
  CacheOptions without_disk = options;
  without_disk.tiers.disk_bytes = 0;
  TL_TRY_ASSIGN(const CachePlan in_memory, plan_layers(without_disk, method));
  const std::uint64_t needed = plan.host_bytes(), most = in_memory.host_bytes();
  return std::min((plan.host_budget_bytes - needed) / 2, most > needed ? most - needed : 0);
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
  return tail_bytes + index_bytes + sealing_bytes + staging_bytes + tables_bytes + row_cache_bytes +
         (home == Tier::host ? rows_bytes : 0);
}

MemoryPlan CachePlan::lines() const {
  MemoryPlan plan;
  const auto add = [&](const char* tier, const char* purpose, std::uint64_t bytes) {
    if (bytes > 0) plan.lines.push_back({tier, purpose, bytes, bytes});
  };
  if (home == Tier::host) add("host", "rows", rows_bytes);
  add("host", "index", index_bytes);
  add("host", "tail", tail_bytes);
  add("host", "row cache", row_cache_bytes);
  add("host", "staging", staging_bytes);
  add("host", "sealing", sealing_bytes);
  add("host", "tables", tables_bytes);
  if (home == Tier::disk) add("disk", "rows", rows_bytes);
  add(kWorkspace, "attention", workspace_bytes);
  return plan;
}

std::uint64_t MemoryPlan::total(const std::string& tier) const {
  std::uint64_t bytes = 0;
  for (const MemoryLine& line : lines)
    if (line.tier == tier) bytes += line.bytes;
  return bytes;
}

Result<CachePlan> make_plan(const CacheOptions& options, const Method& method) {
  if (options.layers.empty())
    return fail(ErrorCode::invalid_argument, "a cache needs at least one layer");
  if (options.max_positions == 0 || options.max_timelines == 0)
    return fail(ErrorCode::invalid_argument,
                "a cache needs at least one position and one timeline");
  TL_TRY_ASSIGN(CachePlan plan, plan_layers(options, method));

  TL_TRY_ASSIGN(const Topology machine, read_topology());
  const bool automatic = options.tiers.host_bytes == kAutoBytes;
  plan.host_budget_bytes = automatic ? machine.available_bytes : options.tiers.host_bytes;
  const std::uint64_t needed = plan.host_bytes();
  if (needed > plan.host_budget_bytes)
    return fail(ErrorCode::exhausted, "the KV cache for ", options.max_positions,
                " positions needs ", size_text(needed), " of host memory and has ",
                size_text(plan.host_budget_bytes), ": raise --kv-host, ",
                options.tiers.disk_bytes > 0 ? "" : "give --kv-disk SIZE to keep rows on disk, ",
                "or lower -c");
  if (plan.home == Tier::disk) {
    if (plan.rows_bytes > options.tiers.disk_bytes)
      return fail(ErrorCode::exhausted, "the KV cache for ", options.max_positions,
                  " positions needs ", size_text(plan.rows_bytes), " on disk and --kv-disk gives ",
                  size_text(options.tiers.disk_bytes), ": raise it or lower -c");
    // What is left over caches rows.
    std::uint64_t left = plan.host_budget_bytes - needed;
    if (automatic) {
      TL_TRY_ASSIGN(left, automatic_row_cache(options, method, plan));
    }
    plan_row_cache(options, method, left, &plan);
  }
  return plan;
}

}  // namespace thermocline
