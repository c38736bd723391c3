#include "runtime/cache_plan.h"

#include <algorithm>
#include <utility>

#include "kernels/base/buffer.h"
#include "kernels/device.h"
#include "retrieval/select/sketch_options.h"
#include "runtime/query_sample.h"
#include "runtime/query_tiles.h"
#include "runtime/timeline_state.h"
#include "runtime/voting.h"
#include "tiers/codec/raw.h"
#include "tiers/page_table.h"
#include "tiers/row_cache.h"
#include "tiers/segment_record.h"
#include "tiers/size_text.h"
#include "tiers/store/device_memory.h"
#include "tiers/store/device_stand_in.h"
#include "tiers/store/publication.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kStagingBytes = std::uint64_t{8} << 20;
// Of what a launch fetches: a wave of rows from a disk is about as much (tiers/reader.cpp), and
// more at a time would be later at the device without being there faster.
constexpr std::uint64_t kMostFetchedFolds = 256;
constexpr std::uint64_t kMostFetchedBytes = std::uint64_t{4} << 20;

// Of the process itself, beside all that is planned: a layer's scratch, stacks, the text.
constexpr std::uint64_t kOwnBytes = std::uint64_t{48} << 20;

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

bool seals(const Method& method, const LayerSpec& spec) {
  return spec.window == 0 && method.retain->keeps();
}

// Of layers that seal so many as the method fits together, one after the other, as long as their
// rows are alike; every other layer alone.
std::vector<std::vector<LayerId>> groups_of(const CacheOptions& options, const Method& method) {
  const std::optional<Side> side = method.side_of_layers();
  const std::size_t most = side ? method.compress.of(*side).fitter()->layers() : 1;
  std::vector<std::vector<LayerId>> groups;
  std::optional<std::size_t> open;
  for (std::uint32_t l = 0; l < options.layers.size(); ++l) {
    const LayerSpec& spec = options.layers[l];
    const auto alike = [&](const LayerSpec& first) {
      return first.kv_heads == spec.kv_heads && first.key_dim == spec.key_dim &&
             first.value_dim == spec.value_dim && first.rope == spec.rope;
    };
    const bool sealing = seals(method, spec);
    if (sealing && open && groups[*open].size() < most &&
        alike(options.layers[index(groups[*open].front())])) {
      groups[*open].push_back(LayerId{l});
      continue;
    }
    if (sealing) open = groups.size();
    groups.push_back({LayerId{l}});
  }
  return groups;
}

// Whether what is fitted in several layers counts in this one: the last.
bool holds_fit(const CachePlan::Layer& layer) { return layer.place + 1 == layer.together; }

// Of a layer's heads together: what is searched, the rows that stand for others, codes of rows, and
// what rows share.
std::uint64_t index_bytes_of(const Method& method, const LayerSpec& spec,
                             const CachePlan::Layer& layer, std::uint64_t rows) {
  const HeadShape shape{spec.q_heads / spec.kv_heads, spec.key_dim, spec.value_dim};
  std::uint64_t bytes = spec.kv_heads * (method.select->index_bytes(shape, rows) +
                                         method.select->summary_bytes(shape, rows) +
                                         method.select->code_bytes(shape, rows));
  for (const Side side : kSides) {
    const Fitter* const fitter = method.compress.of(side).fitter();
    if (!fitter) continue;
    const std::uint32_t layers = fitter->layers() > 1 ? layer.together : 1;
    if (layers > 1 && !holds_fit(layer)) continue;
    bytes +=
        fitter->bytes({layers * spec.kv_heads, side == Side::keys ? spec.key_dim : spec.value_dim},
                      rows, method.select->always_rows(rows));
  }
  return bytes;
}

// Of the side that takes more.
std::uint64_t fitting_bytes_of(const Method& method, const LayerSpec& spec,
                               const CachePlan::Layer& layer, std::uint64_t rows) {
  std::uint64_t bytes = 0;
  for (const Side side : kSides) {
    const Fitter* const fitter = method.compress.of(side).fitter();
    if (!fitter) continue;
    const std::uint32_t layers = fitter->layers() > 1 ? layer.together : 1;
    const std::uint32_t dim = side == Side::keys ? spec.key_dim : spec.value_dim;
    bytes = std::max(bytes, fitter->scratch_bytes({layers * spec.kv_heads, dim}, rows));
  }
  return bytes;
}

// Of rows that wait for those of the last of the layers that they are fitted with.
std::uint64_t gathered_bytes(const Method& method, const LayerSpec& spec,
                             const CachePlan::Layer& layer, std::uint64_t rows) {
  const std::optional<Side> side = method.side_of_layers();
  if (!side || !holds_fit(layer)) return 0;
  return layer.together * spec.kv_heads * rows *
         (*side == Side::keys ? layer.raw.key_bytes : layer.raw.value_bytes);
}

std::uint64_t blocks_of(std::uint32_t rows) {
  return (std::uint64_t{rows} + kBlockRows - 1) / kBlockRows;
}

Segment segment_of(const LayerSpec& spec, const CachePlan::Layer& layer, std::uint64_t rows) {
  Segment segment;
  segment.layout = layer.sealed;
  segment.heads = spec.kv_heads;
  segment.rows = static_cast<std::uint32_t>(rows);
  return segment;
}

// Of a layer's sealed rows where they are at home on a device, at most, and of what lies there
// beside them.
std::uint64_t bytes_there(const LayerSpec& spec, const CachePlan::Layer& layer) {
  return (std::uint64_t{layer.rows} + layer.joint_rows) * spec.kv_heads * layer.sealed.bytes() +
         layer.sketch_bytes;
}

// Where a layer's sealed rows are at home, of which a device would hold `bytes` at most, beside
// what is planned for those before it.
Result<StoreFacts> home_of(const Method& method, const CachePlan& plan, std::uint64_t bytes) {
  Homes homes;
  std::string served;
  for (const Tier tier : kAllTiers) {
    if (!reach_of(plan.stores, tier)) continue;
    if (tier != Tier::device) homes.lowest = tier;
    served += (served.empty() ? "" : ", ") + std::string(name_of(tier));
  }
  const std::uint64_t on_device = plan.device_bytes();
  homes.device_bytes =
      plan.bytes_of(Tier::device) - std::min(plan.bytes_of(Tier::device), on_device);
  const Tier home = method.place->home(homes, bytes);
  const std::optional<Reach> reach = reach_of(plan.stores, home);
  if (!reach)
    return fail(ErrorCode::unsupported, "place.rows = ", method.place->name(), " puts rows in the ",
                name_of(home), " tier, and this cache has stores for ", served,
                ": name another place.rows");
  return StoreFacts{home, *reach};
}

// What a device works in while it attends a layer's rows of one step, all of which may be read: a
// block that lies in two folds is named in both.
std::uint64_t device_work_of(const LayerSpec& spec, const TextCuts& cuts, std::uint64_t step_rows) {
  std::uint64_t folds = 0, blocks = 0;
  for (const auto& [rows, count] : cuts.segments()) {
    const std::uint64_t of_one = (rows + kFoldRows - 1) / kFoldRows;
    folds += count * of_one;
    blocks += count * (of_one + blocks_of(rows));
  }
  const std::uint64_t lists = step_rows * spec.kv_heads;
  return attention_bytes({spec.q_heads / spec.kv_heads, spec.key_dim, spec.value_dim}, lists,
                         lists * folds, lists * blocks);
}

HeadShape shape_of(const LayerSpec& spec) {
  return {spec.q_heads / spec.kv_heads, spec.key_dim, spec.value_dim};
}

// What a device works in while it chooses among a layer's rows, and attends what it chose; none:
// the host chooses. Under place.run = fetch it always does, so that who chooses depends on no home.
Result<ChoiceBytes> choice_of(const CacheOptions& options, const Method& method,
                              const LayerSpec& spec, const TextCuts& cuts, const CachePlan& plan) {
  const SketchOptions* const sketch = method.select->sketch();
  if (!sketch || method.fetches() || cuts.segments().empty()) return ChoiceBytes{};
  if (reach_of(plan.stores, Tier::device) != Reach::device) return ChoiceBytes{};
  std::uint64_t rows = 0;
  SketchBounds bounds;
  for (const auto& [of_one, count] : cuts.segments()) {
    rows += count * of_one;
    bounds.runs += static_cast<std::uint32_t>(count);
    bounds.rows += static_cast<std::uint32_t>(count * blocks_of(of_one) * kBlockRows);
    bounds.clusters +=
        static_cast<std::uint32_t>(count * blocks_of(sketch->clusters(of_one)) * kBlockRows);
  }
  const auto most = [&](std::uint64_t wanted) {
    return static_cast<std::uint32_t>(std::min(wanted, rows));
  };
  const SketchOptions::Budget budget = sketch->budget(options.max_positions, 0);
  bounds.read = most(budget.read);
  bounds.coded = most(budget.coded);
  const RowLayout layout = method.compress.layout(spec.key_dim, spec.value_dim);
  return choice_bytes(sketch->format(shape_of(spec), layout), bounds,
                      static_cast<std::uint32_t>(plan.step_rows * spec.kv_heads));
}

// What a device that chooses has beside a layer's rows: of all timelines, and of what a step's join
// makes of them.
std::uint64_t sketch_bytes_of(const CacheOptions& options, const Method& method,
                              const LayerSpec& spec, const CachePlan::Layer& layer,
                              const TextCuts& cuts, std::uint64_t step_rows) {
  std::uint64_t bytes = step_rows * index_bytes_of(method, spec, layer, cuts.longest_joint());
  for (const auto& [rows, count] : cuts.segments())
    bytes += options.max_timelines * count * index_bytes_of(method, spec, layer, rows);
  return bytes;
}

// What launches of rows at home elsewhere take: of layers that may be so, all that a step may read,
// or so much at a time.
CachePlan::Fetch fetch_of(const CacheOptions& options, const Method& method,
                          std::uint64_t step_rows) {
  const TextCuts cuts = TextCuts::of(options, method);
  std::vector<LayerSpec> layers = options.layers;
  std::erase_if(layers, [&](const LayerSpec& spec) { return !seals(method, spec); });
  CachePlan::Fetch fetch;
  std::uint64_t folds = 0, rows = 0;  // of a list
  for (const auto& [of_one, count] : cuts.segments()) {
    folds += count * ((of_one + kFoldRows - 1) / kFoldRows);
    rows += count * of_one;
  }
  for (const LayerSpec& spec : layers) {
    const std::uint64_t lists = step_rows * spec.kv_heads;
    const std::uint64_t row_bytes = method.compress.layout(spec.key_dim, spec.value_dim).bytes();
    fetch.folds = std::max(fetch.folds, std::min(kMostFetchedFolds, lists * folds));
    fetch.rows_bytes = std::max(
        fetch.rows_bytes,
        round_up(std::min(kMostFetchedBytes, lists * (rows * row_bytes + folds * kWorkApartBytes)),
                 kWorkApartBytes));
  }
  for (const LayerSpec& spec : layers)
    fetch.work_bytes =
        std::max(fetch.work_bytes, attention_bytes(shape_of(spec), fetch.folds, fetch.folds,
                                                   fetch.folds * (kFoldRows / kBlockRows)));
  return fetch;
}

// unsupported: a device does not attend such heads, or rows as this method codes them.
Status check_attended(const Method& method, const LayerSpec& spec, const CachePlan::Layer& layer,
                      const std::string& device) {
  const HeadShape shape = shape_of(spec);
  Fold fold;
  if (const Status raw = device_attends(shape, fold); !raw)
    return fail(raw.error().code, "--device ", device, ": ", raw.error().message,
                ": leave --device out");
  fold.key_format = layer.sealed.key_format;
  fold.value_format = layer.sealed.value_format;
  const Status coded = device_attends(shape, fold);
  if (coded) return {};
  return fail(coded.error().code, "--device ", device,
              " with keys.compress = ", method.compress.of(Side::keys).name(),
              ", values.compress = ", method.compress.of(Side::values).name(), ": ",
              coded.error().message, ": change those, ",
              layer.fetched ? "say --method-set place.run=near, " : "", "or leave --device out");
}

// Of a segment's record in a session's file, in whole pages.
std::uint64_t record_bytes_of(const Method& method, const LayerSpec& spec,
                              const CachePlan::Layer& layer, const Segment& segment) {
  const bool ordered = method.select->facts().order == RowOrder::own;
  // And of each side's fit its kind and the lengths of its parts.
  const std::uint64_t more = index_bytes_of(method, spec, layer, segment.rows) +
                             2 * (sizeof(std::uint32_t) + 2 * sizeof(std::uint64_t));
  return SegmentRecord::bytes_for(segment, ordered, more);
}

// One layer's turn after the other, or all of them together.
void add_joint(const CachePlan::Joint& of_layer, bool together, CachePlan::Joint* joint) {
  const auto add = [together](std::uint64_t bytes, std::uint64_t* to) {
    *to = together ? *to + bytes : std::max(*to, bytes);
  };
  for (std::size_t tier = 0; tier < kTiers; ++tier)
    add(of_layer.rows_bytes[tier], &joint->rows_bytes[tier]);
  add(of_layer.index_bytes, &joint->index_bytes);
  add(of_layer.device_index_bytes, &joint->device_index_bytes);
  add(of_layer.tables_bytes, &joint->tables_bytes);
  add(of_layer.records_bytes, &joint->records_bytes);
}

// What a session keeps of segments, in each timeline, beside them.
void plan_records(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                  const CachePlan::Layer& layer, const TextCuts& cuts, CachePlan* plan) {
  const auto record_of = [&](const Segment& segment) {
    return record_bytes_of(method, spec, layer, segment);
  };
  for (const auto& [rows, count] : cuts.segments())
    plan->records_bytes += options.max_timelines * count * record_of(segment_of(spec, layer, rows));
  const std::uint64_t segments = cuts.segment_count();
  const Segment longest = segment_of(spec, layer, cuts.longest_segment());
  plan->published_bytes += segments * (2 * sizeof(Extent) + sizeof(PageTable::Record));
  plan->saving_bytes += segments * (2 * sizeof(Extent) + sizeof(Segment*));
  if (longest.rows > 0)
    plan->coding_bytes =
        std::max(plan->coding_bytes,
                 record_of(longest) + gathered_bytes(method, spec, layer, cuts.most_at_once()));
  // Read back a record is there twice, as it lies in the file and as it is used.
  if (cuts.longest_held() == 0) return;
  const Segment held = segment_of(spec, layer, cuts.longest_held());
  plan->restoring_bytes = std::max(plan->restoring_bytes, 2 * record_of(held));
  plan->warming_bytes = std::max(
      plan->warming_bytes, round_up(std::uint64_t{held.rows} * held.layout.bytes(), kPageBytes));
}

// What full attention under a method that keeps rows takes, beside sinks and tail.
Status plan_sealed(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                   const TextCuts& cuts, CachePlan::Layer* layer, CachePlan* plan) {
  const HeadShape shape = shape_of(spec);
  const std::uint64_t sealed = method.tail_begin(options.max_positions) - method.sink;
  const Segment longest = segment_of(spec, *layer, cuts.longest_segment());
  plan->fitting_bytes =
      std::max(plan->fitting_bytes, fitting_bytes_of(method, spec, *layer, longest.rows));
  layer->rows = static_cast<std::uint32_t>(options.max_timelines * sealed);
  layer->joint_rows = static_cast<std::uint32_t>(plan->step_rows * cuts.longest_joint());
  if (method.select->facts().remembers) {
    layer->selection_runs = cuts.segment_count();
    layer->selection_blocks = sealed / kBlockRows;
    layer->selections_bytes =
        2 * spec.kv_heads *
        KeptSelection::bytes_for(shape, layer->selection_runs, layer->selection_blocks);
    plan->selections_bytes += options.max_timelines * layer->selections_bytes;
  }
  const Result<ChoiceBytes> choice = choice_of(options, method, spec, cuts, *plan);
  if (choice && choice->device > 0)
    layer->sketch_bytes = sketch_bytes_of(options, method, spec, *layer, cuts, plan->step_rows);
  TL_TRY_ASSIGN(layer->home, home_of(method, *plan, bytes_there(spec, *layer)));
  if (!choice && layer->home.reach == Reach::device) plan->no_choice = choice.error().message;
  layer->fetched = method.fetches() && layer->home.reach != Reach::device &&
                   reach_of(plan->stores, Tier::device) == Reach::device;
  if (layer->home.reach == Reach::device || layer->fetched)
    TL_TRY(check_attended(method, spec, *layer, options.tiers.device));
  const bool pages = layer->in_pages();
  const auto home_bytes_of = [&](const Segment& segment) {  // each head begins a page
    const std::uint64_t head_bytes = std::uint64_t{segment.rows} * segment.layout.bytes();
    return segment.heads * (pages ? round_up(head_bytes, kPageBytes) : head_bytes);
  };
  const bool there = layer->chosen_there();
  // Coded rows on their way home, and what goes with them to a device.
  const auto coded_bytes = [&](const Segment& segment) {
    return std::uint64_t{segment.heads} *
           (std::uint64_t{segment.rows} * segment.layout.bytes() +
            (there ? method.select->index_bytes(shape, segment.rows) : 0));
  };
  std::uint64_t rows_bytes = 0;
  for (const auto& [rows, count] : cuts.segments()) {
    const std::uint64_t alike = options.max_timelines * count;
    rows_bytes += alike * home_bytes_of(segment_of(spec, *layer, rows));
    (there ? plan->device_index_bytes : plan->index_bytes) +=
        alike * index_bytes_of(method, spec, *layer, rows);
  }
  plan->rows_bytes[static_cast<std::size_t>(layer->home.tier)] += rows_bytes;
  if (pages) plan->tables_bytes += rows_bytes / kPageBytes * sizeof(std::uint64_t);
  const bool has_order = method.select->facts().order == RowOrder::own || method.drops();
  if (has_order)
    plan->tables_bytes += std::uint64_t{spec.kv_heads} * layer->rows * sizeof(Segment::offset[0]);
  if (const std::uint32_t rows = cuts.longest_joint()) {
    const Segment joint = segment_of(spec, *layer, rows);
    CachePlan::Joint of_layer;
    of_layer.rows_bytes[static_cast<std::size_t>(layer->home.tier)] = home_bytes_of(joint);
    (there ? of_layer.device_index_bytes : of_layer.index_bytes) =
        index_bytes_of(method, spec, *layer, rows);
    if (pages) of_layer.tables_bytes += home_bytes_of(joint) / kPageBytes * sizeof(std::uint64_t);
    if (has_order)
      of_layer.tables_bytes += std::uint64_t{spec.kv_heads} * rows * sizeof(Segment::offset[0]);
    if (!options.session.path.empty()) {
      of_layer.records_bytes = record_bytes_of(method, spec, *layer, joint);
      // And what is left of the last save, which is one timeline's, in every layer.
      const std::uint64_t short_ones =
          (cuts.replaced_rows() + method.seal_rows() - 1) / method.seal_rows();
      const Segment short_one = segment_of(spec, *layer, method.seal_rows());
      plan->replaced_bytes += short_ones * (home_bytes_of(short_one) +
                                            record_bytes_of(method, spec, *layer, short_one));
    }
    add_joint(of_layer, method.select->facts().shares, &plan->joint);
    plan->coding_bytes = std::max(plan->coding_bytes, coded_bytes(joint));
  }
  // While one is formed, those after it are not there yet. Of layers that are fitted together rows
  // wait meanwhile, from its own on; and so they do when the longest of those that leave the tail
  // with it is formed in the layer before.
  std::uint64_t not_yet = 0, most_coded = 0;
  for (std::size_t i = cuts.formed().size(); i-- > 0;) {
    const TextCuts::Alike& alike = cuts.formed()[i];
    const Segment formed = segment_of(spec, *layer, alike.rows);
    const std::uint64_t coded = coded_bytes(formed);
    const std::uint64_t gathered = gathered_bytes(method, spec, *layer, alike.at_once);
    most_coded = std::max(most_coded, coded);
    const std::uint64_t held = gathered > 0 ? gathered + most_coded : coded;
    plan->coding_bytes = std::max(plan->coding_bytes, held - std::min(held, not_yet));
    not_yet += alike.count * ((layer->home.tier == Tier::host ? home_bytes_of(formed) : 0) +
                              (there ? 0 : index_bytes_of(method, spec, *layer, formed.rows)));
  }
  const Fitter* const of_keys = method.compress.of(Side::keys).fitter();
  const bool fit_asks = of_keys && of_keys->asks_for_queries();
  if (method.select->facts().watches == Watched::queries || fit_asks) {
    // Seen before rows are coded, and gone by then; and a selector's before a fitter's.
    const std::uint64_t sampled = std::max(
        method.select->facts().watches == Watched::queries ? QuerySample::most(cuts.longest_span())
                                                           : 0,
        fit_asks ? std::min(QuerySample::kMostLast, cuts.longest_span()) : 0);
    plan->coding_bytes =
        std::max(plan->coding_bytes, sampled * spec.q_heads * spec.key_dim * sizeof(float) +
                                         gathered_bytes(method, spec, *layer, cuts.most_at_once()));
  }
  if (pages) plan->writing_bytes = std::max(plan->writing_bytes, home_bytes_of(longest));
  if (!options.session.path.empty()) plan_records(options, method, spec, *layer, cuts, plan);
  return {};
}

// What a vote takes, and the rows that it leaves of a segment. Where steps vote, a prefill of which
// no row leaves the tail counts as well.
void plan_votes(const Method& method, const LayerSpec& spec, const TextCuts& cuts,
                const CachePlan::Layer& layer, CachePlan* plan) {
  if (!layer.seals || !method.drops()) return;
  if (cuts.segments().empty() && !method.drops_in_steps()) return;
  const std::uint32_t positions = cuts.longest_span();
  const std::uint32_t seen = positions + layer.tail_capacity + layer.sinks;
  plan->voting_bytes =
      std::max(plan->voting_bytes,
               voting_bytes(method, spec, positions, seen) +
                   RawStore::bytes_for(layer.raw, spec.kv_heads, cuts.longest_segment()));
}

// Memory that attention computes in, in the layer that takes most of it. Of what a device chooses
// it gets a state a list, which needs no place here.
void plan_workspace(const Method& method, const LayerSpec& spec, const TextCuts& cuts,
                    const CachePlan::Layer& layer, int threads, CachePlan* plan) {
  const QueryTiles tiles = QueryTiles::cut(spec, 0, cuts.longest_span());
  plan->tile_query_bytes = std::max<std::uint64_t>(
      plan->tile_query_bytes, tiles.count * tiles.query_floats() * sizeof(float));
  plan->tile_state_bytes = std::max<std::uint64_t>(
      plan->tile_state_bytes, tiles.count * tiles.state_floats() * sizeof(float));
  if (tiles.count > 0)
    plan->tile_scratch_bytes = std::max<std::uint64_t>(
        plan->tile_scratch_bytes, tiles.scratch_floats(threads) * sizeof(float));
  plan->tile_position_bytes = std::max<std::uint64_t>(
      plan->tile_position_bytes, tiles.positions() * sizeof(tiles.position[0]));

  const auto folds_of = [](std::uint64_t rows) { return (rows + kFoldRows - 1) / kFoldRows; };
  std::uint64_t folds = folds_of(layer.sinks) + folds_of(layer.tail_capacity);
  if (layer.seals && !layer.chosen_there()) {
    // A selector may read all, and all of their summaries and codes: no more rows than they stand
    // for.
    std::uint64_t of_rows = 0;
    for (const auto& [rows, count] : cuts.segments()) of_rows += count * folds_of(rows);
    const std::uint64_t forms = 1 + (method.select->summary_bytes(tiles.heads, kBlockRows) > 0) +
                                (method.select->code_bytes(tiles.heads, kBlockRows) > 0);
    folds = std::max(folds, forms * of_rows);
  }
  // In each KV head the state of the whole list, and one for each fold.
  const std::uint64_t states = spec.q_heads * (1 + folds);
  plan->decode_states = std::max(plan->decode_states, states);
  plan->decode_state_floats = std::max(plan->decode_state_floats, states * spec.value_dim);
  plan->decode_query_floats =
      std::max<std::uint64_t>(plan->decode_query_floats, spec.q_heads * spec.key_dim);
}

// Layers of the same rotary embedding share its tables.
void plan_angles(const CacheOptions& options, const TextCuts& cuts, CachePlan* plan) {
  const std::uint64_t rows = std::max<std::uint64_t>(plan->step_rows, cuts.longest_span());
  for (auto layer = options.layers.begin(); layer != options.layers.end(); ++layer)
    if (std::none_of(options.layers.begin(), layer,
                     [&](const LayerSpec& before) { return before.rope == layer->rope; }))
      plan->angle_bytes += 2 * rows * layer->rope.inverse_frequency.size() * sizeof(float);
}

Status plan_layer(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                  const TextCuts& cuts, int threads, CachePlan::Layer layer, CachePlan* plan) {
  layer.raw = raw_layout(spec.key_dim, spec.value_dim);
  layer.sealed = method.compress.layout(spec.key_dim, spec.value_dim);
  layer.seals = seals(method, spec);
  if (spec.window == 0) {
    layer.sinks = method.sink;
    layer.tail_rows =
        std::min(method.recent + method.seal_rows() - 1,
                 options.max_positions - std::min(options.max_positions, method.sink));
  } else {
    // No more than there are positions, lest a window of nearly 2^32 wraps around.
    layer.tail_rows = std::min(std::min(spec.window, options.max_positions) + kWindowSlack,
                               options.max_positions);
  }
  layer.tail_capacity = layer.tail_rows + kMaxStepRows;
  if (layer.seals && method.drops_in_steps()) {
    layer.votes_bytes = 2 * sizeof(float) * std::uint64_t{spec.kv_heads} * layer.tail_capacity;
    plan->decode_score_floats =
        std::max(plan->decode_score_floats, std::uint64_t{spec.q_heads} * layer.tail_capacity);
  }
  plan->tail_bytes +=
      options.max_timelines *
      (RawStore::bytes_for(layer.raw, spec.kv_heads, layer.tail_capacity + layer.sinks) +
       layer.votes_bytes);
  plan->spare_tail_bytes += RawStore::bytes_for(layer.raw, spec.kv_heads, layer.tail_capacity);
  plan->span_bytes = std::max(
      plan->span_bytes,
      RawStore::bytes_for(
          layer.raw, spec.kv_heads,
          std::max(cuts.raw_rows(spec, plan->layers.size(), layer.tail_rows),
                   layer.seals ? std::max(cuts.longest_joint(), cuts.longest_copied()) : 0)));
  plan_votes(method, spec, cuts, layer, plan);
  if (layer.seals && !cuts.segments().empty())
    TL_TRY(plan_sealed(options, method, spec, cuts, &layer, plan));
  plan_workspace(method, spec, cuts, layer, threads, plan);
  plan->layers.push_back(layer);
  return {};
}

// The text and a timeline's raw rows, which are published whole, one publication beside the last.
void plan_publication(const CacheOptions& options, const TextCuts& cuts, CachePlan* plan) {
  const std::uint64_t text = plan->published_bytes + options.session.text_bytes +
                             std::uint64_t{options.max_positions} * sizeof(int);
  std::vector<std::uint64_t> saves;
  for (std::size_t l = 0; l < options.layers.size(); ++l) {
    const CachePlan::Layer& layer = plan->layers[l];
    const auto tails = cuts.saved_tails(options.layers[l], l, layer.tail_rows);
    saves.resize(tails.size(), text);
    for (std::size_t i = 0; i < tails.size(); ++i)
      saves[i] +=
          RawStore::bytes_for(layer.raw, options.layers[l].kv_heads, layer.sinks + tails[i]);
  }
  std::uint64_t before = 0, beside = 0;
  for (std::uint64_t& save : saves) {
    save = round_up(save, kPageBytes);
    beside = std::max(beside, std::exchange(before, save) + save);
  }
  plan->published_bytes = kSessionHeaderBytes + beside + plan->replaced_bytes;
  // The first one may be an earlier process's.
  const bool is_held = !options.course || options.course->resumed.positions > 0;
  if (is_held) plan->restoring_bytes += saves.front();
  plan->saving_bytes += *std::max_element(saves.begin() + is_held, saves.end()) + kPageBytes;
}

Status check_course(const CacheOptions& options) {
  if (!options.course) return {};
  std::uint32_t at = options.course->resumed.positions;
  for (const std::uint32_t end : options.course->reads) {
    if (end < at)
      return fail(ErrorCode::invalid_argument, "a course that reads up to position ", end,
                  " when it is at ", at);
    at = end;
  }
  if (at <= options.max_positions) return {};
  return fail(ErrorCode::invalid_argument, "a course up to position ", at, " of a cache of ",
              options.max_positions);
}

// Layers that do not fit are at home elsewhere, which is what a placer is for. But a device that
// was given memory and gets no row of any is not what was asked for.
Status check_device_rows(const CacheOptions& options, const Method& method, const CachePlan& plan) {
  const std::uint64_t given = plan.bytes_of(Tier::device);
  std::uint64_t least = 0;  // that rows of a layer take; 0: no layer has any
  for (std::size_t l = 0; l < plan.layers.size(); ++l) {
    const std::uint64_t bytes = bytes_there(options.layers[l], plan.layers[l]);
    if (bytes > 0 && (least == 0 || bytes < least)) least = bytes;
  }
  if (given == 0 || least == 0 || plan.fetches()) return {};
  if (method.place->home({.device_bytes = Budget::kUnlimited}, least) != Tier::device)
    return fail(ErrorCode::invalid_argument, "place.rows = ", method.place->name(),
                " puts no rows on a device, and --kv-device gives it ", size_text(given),
                ": say --method-set place.rows=spill, or leave --device and --kv-device out");
  if (options.tiers.device_bytes == kAutoBytes) return {};
  return fail(ErrorCode::exhausted, "the device is given ", size_text(given),
              ", and the rows of one layer with what it works in need ",
              size_text(least + plan.device_staging_bytes()), ": raise --kv-device to ",
              (least + plan.device_staging_bytes() + 1023) / 1024,
              "K, or leave --device and --kv-device out");
}

// What a device works in, of whichever layers will be at home there.
void plan_device_work(const CacheOptions& options, const Method& method, const TextCuts& cuts,
                      CachePlan* plan) {
  for (const LayerSpec& spec : options.layers) {
    if (!seals(method, spec)) continue;
    const ChoiceBytes choice =
        choice_of(options, method, spec, cuts, *plan).value_or(ChoiceBytes{});
    plan->choice = {std::max(plan->choice.device, choice.device),
                    std::max(plan->choice.host, choice.host)};
    if (choice.device == 0)
      plan->device_work_bytes =
          std::max(plan->device_work_bytes, device_work_of(spec, cuts, plan->step_rows));
  }
}

// And not of those that are not.
void drop_device_work(CachePlan* plan) {
  const auto any = [&](bool chosen) {
    return std::ranges::any_of(plan->layers, [&](const CachePlan::Layer& layer) {
      return layer.rows > 0 && layer.home.reach == Reach::device && layer.chosen_there() == chosen;
    });
  };
  if (!any(false)) plan->device_work_bytes = 0;
  if (!any(true)) plan->choice = {};
}

// `fetch`: what rows are sent to a device in, if any layer's are.
Result<CachePlan> plan_layers(const CacheOptions& options, const Method& method, int threads,
                              const StoreOptions& stores, const CachePlan::Fetch& fetch) {
  CachePlan plan;
  plan.stores = stores;
  plan.fetch = fetch;
  if (any_staged(stores)) plan.staging_bytes = kStagingBytes;
  const TextCuts cuts = TextCuts::of(options, method);
  plan.step_rows = std::min<std::uint64_t>(options.max_timelines, kMaxStepRows);
  if (reach_of(stores, Tier::device) == Reach::device)
    plan_device_work(options, method, cuts, &plan);
  plan.groups = groups_of(options, method);
  std::vector<CachePlan::Layer> placed(options.layers.size());
  for (const std::vector<LayerId>& group : plan.groups)
    for (std::uint32_t place = 0; place < group.size(); ++place) {
      placed[index(group[place])].place = place;
      placed[index(group[place])].together = static_cast<std::uint32_t>(group.size());
    }
  for (std::size_t l = 0; l < options.layers.size(); ++l)
    TL_TRY(plan_layer(options, method, options.layers[l], cuts, threads, placed[l], &plan));
  // A step adds a row to each of its timelines.
  for (std::size_t tier = 0; tier < kTiers; ++tier)
    plan.rows_bytes[tier] += plan.step_rows * plan.joint.rows_bytes[tier];
  plan.index_bytes += plan.step_rows * plan.joint.index_bytes;
  plan.device_index_bytes += plan.step_rows * plan.joint.device_index_bytes;
  plan.tables_bytes += plan.step_rows * plan.joint.tables_bytes;
  plan.records_bytes += plan.step_rows * plan.joint.records_bytes;
  if (plan.home_bytes(Tier::device) == 0) TL_TRY(check_device_rows(options, method, plan));
  drop_device_work(&plan);
  plan_angles(options, cuts, &plan);
  if (!options.session.path.empty()) plan_publication(options, cuts, &plan);
  return plan;
}

// What does not depend on how much host memory or disk there is.
Result<CachePlan> plan_layers(const CacheOptions& options, const Method& method, int threads,
                              const StoreOptions& stores) {
  for (std::size_t l = 0; l < options.layers.size(); ++l) TL_TRY(check_layer(options.layers[l], l));
  TL_TRY_ASSIGN(CachePlan plan, plan_layers(options, method, threads, stores, {}));
  if (!plan.fetches()) return plan;
  // Not all layers fit on the device, and fewer may, beside what the rows of others are sent in.
  return plan_layers(options, method, threads, stores, fetch_of(options, method, plan.step_rows));
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

std::uint64_t free_bytes(const Budget* whole, Tier tier) {
  return whole ? whole->usage(tier).free_bytes() : Budget::kUnlimited;
}

// What a device is to hold, of `most` that it may; 0: there is none.
Result<std::uint64_t> device_budget(const TierOptions& tiers, std::uint64_t most) {
  const bool sized = tiers.device_bytes != 0 && tiers.device_bytes != kAutoBytes;
  if (tiers.device == DeviceStandIn::kDevice) {
    if (sized) return tiers.device_bytes;
    return fail(ErrorCode::invalid_argument,
                "--device host is host memory that stands in for a GPU with as much as --kv-device "
                "says: give it a size");
  }
  if (tiers.device == "none") {
    if (tiers.device_bytes == 0) return 0;
    return fail(
        ErrorCode::invalid_argument,
        "--kv-device is of a device, and none is named: say --device cuda, or --device host, "
        "and host memory stands in for a GPU");
  }
  const std::optional<std::uint32_t> number = device_number(tiers.device);
  if (!number)
    return fail(ErrorCode::invalid_argument, "--device '", tiers.device,
                "' is not known (known: none, host, cuda, cuda:N)");
  if (tiers.device_bytes == 0)
    return fail(ErrorCode::invalid_argument, "--device ", tiers.device,
                " has nothing to hold: say --kv-device SIZE, or --kv-device auto");
  const Result<std::unique_ptr<Device>> device = open_device(*number);
  if (!device)
    return fail(device.error().code, "--device ", tiers.device, ": ", device.error().message,
                "; with --device host, host memory stands in for a GPU");
  if (sized) return tiers.device_bytes;
  TL_TRY_ASSIGN(const std::uint64_t free, (*device)->free_bytes());
  return std::min(free - free / 16, most);
}

// What each tier may hold, but for host memory that is not asked for.
Result<StoreOptions> stores_for(const TierOptions& tiers, const SessionOptions& session,
                                const Budget* whole) {
  StoreOptions stores;
  TL_TRY_ASSIGN(stores.bytes[static_cast<std::size_t>(Tier::device)],
                device_budget(tiers, free_bytes(whole, Tier::device)));
  stores.device = tiers.device;
  stores.bytes[static_cast<std::size_t>(Tier::host)] = tiers.host_bytes;
  stores.directory = tiers.directory;
  stores.session = session.path;
  // A session is on the disk: without a budget for it, as large as it gets.
  stores.bytes[static_cast<std::size_t>(Tier::disk)] =
      tiers.disk_bytes == 0 && !session.path.empty() ? kAutoBytes : tiers.disk_bytes;
  return stores;
}

// What stands in for a device is the host's memory.
std::uint64_t stand_in_bytes(const CachePlan& plan) {
  return plan.stores.device == DeviceStandIn::kDevice ? plan.home_bytes(Tier::device) : 0;
}

// Of the machine's memory, beside a cache in it.
std::uint64_t beside_of(const CacheOptions& options, const CachePlan& plan) {
  return stand_in_bytes(plan) + plan.workspace_bytes() + options.beside_bytes +
         plan.allowance_bytes();
}

// How to need less: of a text that is there no context says how long it is.
const char* fewer_positions(const CacheOptions& options) {
  if (!options.course) return "lower -c";
  const Course& course = *options.course;
  const std::uint32_t text = course.reads.empty() ? course.resumed.positions : course.reads.back();
  if (text >= options.max_positions / 2) return "take a shorter text";
  return "lower -n or -c";
}

// A budget may be larger than the machine; what is planned may not.
Status check_machine(const CacheOptions& options, const CachePlan& plan,
                     std::uint64_t available_bytes) {
  const std::uint64_t needed = plan.host_bytes(), beside = beside_of(options, plan);
  if (beside <= available_bytes && needed <= available_bytes - beside) return {};
  // What is left of a budget caches rows.
  const bool lower_host = plan.row_cache_bytes > 0;
  return fail(ErrorCode::exhausted, "the KV cache for ", options.max_positions, " positions needs ",
              size_text(needed), " of host memory, beside ", size_text(beside),
              stand_in_bytes(plan) > 0 ? " in the device's stand-in and" : "",
              " to compute in, and this machine has ", size_text(available_bytes), " available: ",
              lower_host                      ? "lower --kv-host"
              : stand_in_bytes(plan) > 0      ? "lower --kv-device, or "
              : plan.bytes_of(Tier::disk) > 0 ? ""
                                              : "give --kv-disk SIZE to keep rows on disk, or ",
              lower_host ? "" : fewer_positions(options));
}

// The caches of an engine share what it gives them: none may need more than others have left.
Status check_whole(const CacheOptions& options, const CachePlan& plan, const Budget* whole) {
  for (const Tier tier : kAllTiers) {
    const std::uint64_t needed = plan.needed_bytes()[static_cast<std::size_t>(tier)];
    if (needed <= free_bytes(whole, tier)) continue;
    // What is left of a budget caches rows.
    const bool lower_host = tier == Tier::host && plan.row_cache_bytes > 0;
    const TierUsage usage = whole->usage(tier);
    return fail(ErrorCode::exhausted, "the KV cache for ", options.max_positions,
                " positions needs ", size_text(needed), " of ", name_of(tier), ", and ",
                size_text(usage.free_bytes()), " of ", size_text(usage.total_bytes),
                " is free of what its engine gives all caches: raise ", limit_of(tier),
                ", let another cache go, or ",
                lower_host ? "lower --kv-host" : fewer_positions(options));
  }
  return {};
}

// A session is what its file holds: no row may be at home elsewhere.
Status check_kept(const Method& method, const CachePlan& plan) {
  if (!method.select->facts().in_files)
    return fail(ErrorCode::unsupported, "select.by = ", method.select->name(),
                " makes an index that is not kept in files: leave --session out");
  if (method.drops())
    return fail(ErrorCode::unsupported, "retain.keep = ", method.retain->name(),
                " drops rows, and a session's file holds all: leave --session out");
  if (method.select->facts().remembers)
    return fail(ErrorCode::unsupported,
                "select.reuse = similar reads what steps before chose, which a session's file does "
                "not hold: say --method-set select.reuse=never, or leave --session out");
  for (const CachePlan::Layer& layer : plan.layers)
    if (layer.rows > 0 && !layer.in_pages())
      return fail(ErrorCode::unsupported, "place.rows = ", method.place->name(), " keeps rows in ",
                  name_of(layer.home.tier), " memory, and --session in its file: ",
                  layer.home.tier == Tier::device ? "leave --device and --kv-device out, or "
                                                  : "say --method-set place.rows=lowest, or leave ",
                  "--session", layer.home.tier == Tier::device ? "" : " out");
  return {};
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
  if (!no_choice.empty())
    return {"the host chooses among rows on the device, and keeps what it chooses by: " +
            no_choice};
  if (bytes_of(Tier::device) == 0 || device_bytes() > 0) return {};
  if (std::ranges::none_of(layers, [](const Layer& layer) { return layer.rows > 0; }))
    return {"--kv-device has no effect: the whole text stays in the tail, which is in host memory"};
  return {"--kv-device auto has no effect: the device has " + size_text(bytes_of(Tier::device)) +
          " to give, too little for the rows of a layer"};
}

Status check_device(const TierOptions& tiers) {
  TL_TRY(device_budget(tiers, Budget::kUnlimited));
  return {};
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
