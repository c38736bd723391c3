#include "runtime/sealed_plan.h"

#include <algorithm>
#include <string>

#include "kernels/base/buffer.h"
#include "runtime/device_plan.h"
#include "runtime/query_sample.h"
#include "runtime/segment_bytes.h"
#include "runtime/session_plan.h"
#include "runtime/timeline_state.h"

namespace thermocline {
namespace {

// Where a layer's sealed rows are at home, of which a device would hold `bytes` at most, beside
// what is planned for those before it and `kept` for those after it.
Result<StoreFacts> home_of(const Method& method, const CachePlan& plan, std::uint64_t bytes,
                           std::uint64_t kept) {
  const std::uint64_t given = plan.bytes_of(Tier::device);
  const Tier home = method.place->home(
      {lowest_of(plan.stores), given - std::min(given, plan.device_bytes() + kept)}, bytes);
  if (const std::optional<Reach> reach = reach_of(plan.stores, home))
    return StoreFacts{home, *reach};
  std::string served;
  for (const Tier tier : kAllTiers)
    if (reach_of(plan.stores, tier))
      served += (served.empty() ? "" : ", ") + std::string(name_of(tier));
  return fail(ErrorCode::unsupported, "place.rows = ", method.place->name(), " puts rows in the ",
              name_of(home), " tier, and this cache has stores for ", served,
              ": name another place.rows");
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

}  // namespace

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
  layer->may_choose = choice && choice->device > 0;
  if (layer->may_choose)
    layer->choosing_bytes = choosing_bytes_of(options, method, spec, *layer, cuts, plan->step_rows);
  const std::uint64_t kept =
      fetching_bytes(options, method, cuts, *plan, plan->slots, plan->layers.size() + 1);
  TL_TRY_ASSIGN(layer->home, home_of(method, *plan, bytes_there(spec, *layer), kept));
  layer->fetched = method.fetches() && layer->home.reach != Reach::device &&
                   reach_of(plan->stores, Tier::device) == Reach::device;
  if (layer->home.reach == Reach::device || layer->fetched) {
    const std::string no_choice = choice ? "" : choice.error().message;
    TL_TRY(check_attended(method, spec, *layer, options.tiers.device, no_choice));
    if (!choice) plan->no_choice = no_choice;
  }
  if (layer->fetched && layer->chosen_there())
    layer->slots_bytes = slots_bytes_of(spec, *layer, plan->slots);
  plan->slots_bytes += options.max_timelines * layer->slots_bytes;
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
  const auto index_bytes_here = [&](std::uint64_t rows) {
    return (there ? fit_bytes_of : index_bytes_of)(method, spec, *layer, rows);
  };
  std::uint64_t rows_bytes = 0;
  for (const auto& [rows, count] : cuts.segments()) {
    const std::uint64_t alike = options.max_timelines * count;
    rows_bytes += alike * home_bytes_of(segment_of(spec, *layer, rows));
    if (there) plan->device_index_bytes += alike * index_bytes_there(method, spec, *layer, rows);
    plan->index_bytes += alike * index_bytes_here(rows);
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
    if (there) of_layer.device_index_bytes = index_bytes_there(method, spec, *layer, rows);
    of_layer.index_bytes = index_bytes_here(rows);
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
                              index_bytes_here(formed.rows));
  }
  if (method.select->facts().watches == Watched::queries || method.fits_by_queries()) {
    // Seen before rows are coded, and gone by then; and a selector's before a fitter's.
    const std::uint64_t sampled = std::max(
        method.select->facts().watches == Watched::queries ? QuerySample::most(cuts.longest_span())
                                                           : 0,
        method.fits_by_queries() ? std::min(QuerySample::kMostLast, cuts.longest_span()) : 0);
    plan->coding_bytes =
        std::max(plan->coding_bytes, sampled * spec.q_heads * spec.key_dim * sizeof(float) +
                                         gathered_bytes(method, spec, *layer, cuts.most_at_once()));
  }
  if (pages) plan->writing_bytes = std::max(plan->writing_bytes, home_bytes_of(longest));
  if (!options.session.path.empty()) plan_records(options, method, spec, *layer, cuts, plan);
  return {};
}

}  // namespace thermocline
