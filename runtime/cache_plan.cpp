#include "runtime/cache_plan.h"

#include <algorithm>

#include "runtime/device_plan.h"
#include "runtime/layer_plan.h"
#include "runtime/plan_limits.h"
#include "runtime/session_plan.h"
#include "runtime/step_plan.h"
#include "tiers/row_cache.h"
#include "tiers/size_text.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kStagingBytes = std::uint64_t{8} << 20;

// Of the process itself, beside all that is planned: a layer's scratch, stacks, the text.
constexpr std::uint64_t kOwnBytes = std::uint64_t{48} << 20;

// Layers of the same rotary embedding share its tables.
void plan_angles(const CacheOptions& options, const TextCuts& cuts, CachePlan* plan) {
  const std::uint64_t rows = std::max<std::uint64_t>(plan->step_rows, cuts.longest_span());
  for (auto layer = options.layers.begin(); layer != options.layers.end(); ++layer)
    if (std::none_of(options.layers.begin(), layer,
                     [&](const LayerSpec& before) { return before.rope == layer->rope; }))
      plan->angle_bytes += 2 * rows * layer->rope.inverse_frequency.size() * sizeof(float);
}

// `fetch`: what rows are sent to a device in, if any layer's are; `slots`: the least that it has
// for those that it fetches itself.
Result<CachePlan> plan_layers(const CacheOptions& options, const Method& method, int threads,
                              const StoreOptions& stores, const CachePlan::Fetch& fetch,
                              const CachePlan::Slots& slots) {
  CachePlan plan;
  plan.stores = stores;
  plan.fetch = fetch;
  plan.slots = slots;
  if (any_staged(stores)) plan.staging_bytes = kStagingBytes;
  const TextCuts cuts = TextCuts::of(options, method);
  plan.step_rows = std::min<std::uint64_t>(options.max_timelines, kMaxStepRows);
  std::vector<CachePlan::Layer> placed(options.layers.size());
  if (reach_of(stores, Tier::device) == Reach::device) {
    plan_device_work(options, method, cuts, &plan);
    for (std::size_t l = 0; l < options.layers.size(); ++l)
      placed[l].prefilled_there =
          plan_prefill_there(options, method, options.layers[l], cuts, &plan);
    plan_steps_there(options, method, cuts, &plan);
  }
  take_useful_slots(options, method, cuts, &plan);
  plan.groups = groups_of(options, method);
  for (const std::vector<LayerId>& group : plan.groups)
    for (std::uint32_t place = 0; place < group.size(); ++place) {
      placed[index(group[place])].place = place;
      placed[index(group[place])].together = static_cast<std::uint32_t>(group.size());
    }
  for (std::size_t l = 0; l < options.layers.size(); ++l)
    TL_TRY(plan_layer(options, method, options.layers[l], cuts, placed[l], &plan));
  // A step adds a row to each of its timelines.
  for (std::size_t tier = 0; tier < kTiers; ++tier)
    plan.rows_bytes[tier] += plan.step_rows * plan.joint.rows_bytes[tier];
  plan.index_bytes += plan.step_rows * plan.joint.index_bytes;
  plan.device_index_bytes += plan.step_rows * plan.joint.device_index_bytes;
  plan.tables_bytes += plan.step_rows * plan.joint.tables_bytes;
  plan.records_bytes += plan.step_rows * plan.joint.records_bytes;
  if (plan.home_bytes(Tier::device) == 0) TL_TRY(check_device_rows(options, method, plan));
  drop_device_work(&plan);
  drop_steps_there(options, method, cuts, &plan);
  for (std::size_t l = 0; l < options.layers.size(); ++l)
    if (!plan.layers[l].prefilled_there) plan_tiles(options.layers[l], cuts, threads, &plan);
  fill_with_slots(options, &plan);
  // For a device to read rows where they are, if they are not on a disk.
  plan.stores.pinned = std::ranges::any_of(plan.layers, [](const CachePlan::Layer& layer) {
    return layer.slots_bytes > 0 && layer.home.reach == Reach::memory;
  });
  plan_angles(options, cuts, &plan);
  if (!options.session.path.empty()) plan_publication(options, cuts, &plan);
  return plan;
}

// What does not depend on how much host memory or disk there is.
Result<CachePlan> plan_layers(const CacheOptions& options, const Method& method, int threads,
                              const StoreOptions& stores) {
  for (std::size_t l = 0; l < options.layers.size(); ++l) TL_TRY(check_layer(options.layers[l], l));
  Result<CachePlan> planned = plan_layers(options, method, threads, stores, {}, {});
  if (!planned && options.layers_there && !method.fetches()) {
    // Beside what rows that stay take, no sealed ones may fit that would without.
    CacheOptions apart = options;
    apart.layers_there.reset();
    planned = plan_layers(apart, method, threads, stores, {}, {});
  }
  TL_TRY_ASSIGN(CachePlan plan, std::move(planned));
  if (!plan.fetches()) return plan;
  // Not all layers fit on the device, and fewer may, beside what the others take there.
  return plan_layers(options, method, threads, stores, fetch_of(options, method, plan),
                     slots_of(options, method, plan));
}

// Of memory for a cache of rows, unasked: half of what the machine has free, and not so much that
// the disk costs more memory than it spares.
Result<std::uint64_t> automatic_row_cache(const CacheOptions& options, const Method& method,
                                          int threads, const CachePlan& plan) {
  TL_TRY_ASSIGN(const CachePlan in_memory, plan_layers(options, method, threads, StoreOptions{}));
  const std::uint64_t needed = plan.host_bytes(), most = in_memory.host_bytes();
  const std::uint64_t left = plan.bytes_of(Tier::host) - needed;
  return std::min(left / 2, most > needed ? most - needed : 0);
}

// `bytes` of memory for copies of rows on the disk, and for finding them; for no more rows than
// there can be.
void plan_row_cache(const CacheOptions& options, const Method& method, std::uint64_t bytes,
                    CachePlan* plan) {
  std::uint64_t of_row = 0, fixed = 0;  // in every layer and head that seals
  for (std::size_t l = 0; l < plan->layers.size(); ++l) {
    const CachePlan::Layer& layer = plan->layers[l];
    if (!layer.in_pages()) continue;
    const std::uint64_t heads = options.layers[l].kv_heads;
    const std::uint64_t numbers = layer.row_numbers();
    const std::uint64_t one = RowCache::table_bytes(1, numbers);
    of_row += heads * (layer.sealed.bytes() + RowCache::table_bytes(2, numbers) - one);
    fixed += heads * (one - (RowCache::table_bytes(2, numbers) - one));
  }
  if (of_row == 0) return;
  const std::uint64_t without = plan->sealing_bytes();
  plan->row_cache_rows = 1;
  const std::uint64_t warming = plan->sealing_bytes() - without;
  plan->row_cache_rows = 0;
  if (bytes < warming + fixed + of_row) return;
  const std::uint64_t sealed = method.tail_begin(options.max_positions) - method.sink;
  plan->row_cache_rows = static_cast<std::uint32_t>(
      std::min<std::uint64_t>((bytes - warming - fixed) / of_row, sealed * options.max_timelines));
  plan->row_cache_bytes = fixed + plan->row_cache_rows * of_row;
}

std::vector<std::string> idle_layers_of(const CacheOptions& options, const Method& method) {
  std::vector<std::string> idle;
  const std::size_t layers = options.layers.size();
  for (const NamedLayer& named : method.select->named_layers()) {
    const std::size_t l = index(named.layer);
    if (l < layers && options.layers[l].window == 0) continue;
    idle.push_back("select." + std::string(named.setting) + " = " + std::to_string(l) +
                   " has no effect: " +
                   (l < layers ? "that layer has a sliding window"
                               : "the model has layers 0 to " + std::to_string(layers - 1)));
  }
  return idle;
}

}  // namespace

std::uint64_t CachePlan::host_bytes() const {
  return tail_bytes + index_bytes + sealing_bytes() + staging_bytes + tables_bytes +
         selections_bytes + row_cache_bytes + home_bytes(Tier::host) + pinned_bytes();
}

std::uint64_t CachePlan::workspace_bytes() const {
  const std::uint64_t of_a_row = (decode_query_floats + decode_state_floats) * sizeof(float) +
                                 decode_states * sizeof(AttnState);
  return tile_query_bytes + tile_state_bytes + tile_scratch_bytes + tile_position_bytes +
         angle_bytes + step_rows * of_a_row + decode_score_floats * sizeof(float);
}

MemoryPlan CachePlan::lines() const {
  MemoryPlan plan;
  const auto add = [&](Tier tier, Purpose purpose, std::uint64_t bytes) {
    if (bytes > 0)
      plan.lines.push_back(
          {std::string(name_of(tier)), std::string(name_of(purpose)), bytes, bytes});
  };
  for (const Tier tier : kAllTiers) {
    add(tier, Purpose::rows, rows_bytes[static_cast<std::size_t>(tier)]);
    if (tier == Tier::device) {
      add(tier, Purpose::index, device_index_bytes);
      add(tier, Purpose::tail, tails_there_bytes);
      add(tier, Purpose::row_cache, slots_bytes);
      add(tier, Purpose::staging, device_staging_bytes());
    }
    if (tier == Tier::disk) {
      add(tier, Purpose::index, records_bytes);
      add(tier, Purpose::saved, published_bytes);
    }
    if (tier != Tier::host) continue;
    add(tier, Purpose::index, index_bytes);
    add(tier, Purpose::tail, tail_bytes);
    add(tier, Purpose::row_cache, row_cache_bytes);
    add(tier, Purpose::staging, staging_bytes + pinned_bytes());
    add(tier, Purpose::sealing, sealing_bytes());
    add(tier, Purpose::tables, tables_bytes);
    add(tier, Purpose::selections, selections_bytes);
  }
  plan.lines.push_back({kWorkspace, "attention", workspace_bytes(), workspace_bytes()});
  for (const MemoryLine& line : plan.lines) plan.peak_bytes[line.tier] += line.bytes;
  plan.allowance_bytes = allowance_bytes();
  return plan;
}

std::uint64_t CachePlan::allowance_bytes() const { return kOwnBytes + fitting_bytes; }

std::vector<std::string> CachePlan::notes() const {
  std::vector<std::string> notes = idle_layers;
  if (!no_choice.empty())
    notes.push_back(
        "the host chooses among rows that the device attends, and keeps what it "
        "chooses by: " +
        no_choice);
  if (!no_prefill.empty())
    notes.push_back("the host attends a prefill of some layers: " + no_prefill);
  if (!no_choice.empty()) return notes;
  if (bytes_of(Tier::device) == 0 || device_bytes() > 0)
    return notes;
  else if (std::ranges::none_of(layers, [](const Layer& layer) { return layer.rows > 0; }))
    notes.push_back(
        "--kv-device has no effect: the whole text stays in the tail, which is in host memory");
  else
    notes.push_back("--kv-device auto has no effect: the device has " +
                    size_text(bytes_of(Tier::device)) +
                    " to give, too little for the rows of a layer");
  return notes;
}

Result<CachePlan> make_plan(const CacheOptions& options, const Method& method, int threads,
                            std::uint64_t available_bytes, const Budget* whole) {
  if (options.layers.empty())
    return fail(ErrorCode::invalid_argument, "a cache needs at least one layer");
  if (options.max_positions == 0 || options.max_timelines == 0)
    return fail(ErrorCode::invalid_argument,
                "a cache needs at least one position and one timeline");
  TL_TRY(check_rows(options, method));
  TL_TRY(check_course(options));
  TL_TRY_ASSIGN(const StoreOptions stores, stores_for(options.tiers, options.session, whole));
  TL_TRY_ASSIGN(CachePlan plan, plan_layers(options, method, threads, stores));
  plan.idle_layers = idle_layers_of(options, method);

  TL_TRY(check_machine(options, plan, available_bytes));
  TL_TRY(check_whole(options, plan, whole));
  const bool automatic = options.tiers.host_bytes == kAutoBytes;
  if (automatic)
    plan.stores.bytes[static_cast<std::size_t>(Tier::host)] =
        std::min(available_bytes - beside_of(options, plan), free_bytes(whole, Tier::host));
  const std::uint64_t needed = plan.host_bytes(), host = plan.bytes_of(Tier::host);
  if (needed > host)
    return fail(ErrorCode::exhausted, "the KV cache for ", options.max_positions,
                " positions needs ", size_text(needed), " of host memory and has ", size_text(host),
                ": raise --kv-host, ",
                plan.bytes_of(Tier::disk) > 0 ? "" : "give --kv-disk SIZE to keep rows on disk, ",
                "or ", fewer_positions(options));
  if (!options.session.path.empty()) TL_TRY(check_kept(method, plan));
  for (const Tier tier : {Tier::device, Tier::disk}) {
    const std::uint64_t bytes = tier == Tier::device ? plan.device_bytes() : plan.home_bytes(tier);
    if (bytes > plan.bytes_of(tier))
      return fail(ErrorCode::exhausted, "the KV cache for ", options.max_positions,
                  " positions needs ", size_text(bytes), " on ", name_of(tier), " and ",
                  flag_of(tier), " gives ", size_text(plan.bytes_of(tier)), ": raise it or ",
                  fewer_positions(options));
    plan.stores.planned[static_cast<std::size_t>(tier)] = {bytes, options.max_positions};
  }
  if (any_in_pages(stores)) {  // what is left over caches rows
    std::uint64_t left = host - needed;
    if (automatic) {
      TL_TRY_ASSIGN(left, automatic_row_cache(options, method, threads, plan));
    }
    plan_row_cache(options, method, left, &plan);
    TL_TRY(check_machine(options, plan, available_bytes));
    TL_TRY(check_whole(options, plan, whole));
  }
  return plan;
}

}  // namespace thermocline
