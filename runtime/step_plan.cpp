#include "runtime/step_plan.h"

#include <algorithm>

#include "kernels/device.h"
#include "runtime/device_plan.h"
#include "runtime/layer_plan.h"
#include "runtime/segment_bytes.h"
#include "runtime/tail_there.h"
#include "tiers/store/device_memory.h"

namespace thermocline {
namespace {

// Whether a device computes the layer and may attend all of it: unless steps have to see what each
// of a tail's rows got, and if it takes raw rows of such heads.
bool may_stay(const CacheOptions& options, const Method& method, std::size_t l,
              const CachePlan& plan) {
  if (!options.layers_there || l < options.layers_there->first) return false;
  if (reach_of(plan.stores, Tier::device) != Reach::device) return false;
  if (device_number(options.tiers.device) != options.layers_there->device) return false;
  const LayerSpec& spec = options.layers[l];
  if (seals(method, spec) && method.drops_in_steps()) return false;
  return device_attends(shape_of(spec), Fold()).has_value();
}

// With what a step takes in the layers that `stays` says so of.
template <typename Stays>
void plan_steps_of(const CacheOptions& options, const Method& method, const TextCuts& cuts,
                   const Stays& stays, CachePlan* plan) {
  StepBounds bounds;
  plan->tails_there_bytes = 0;
  for (std::size_t l = 0; l < options.layers.size(); ++l) {
    if (!stays(l)) continue;
    const LayerSpec& spec = options.layers[l];
    CachePlan::Layer layer;
    plan_tail(options, method, spec, &layer);
    plan->tails_there_bytes +=
        options.max_timelines *
        TailThere::bytes_for(layer.raw, spec.kv_heads, layer.sinks, layer.tail_capacity);
    ++bounds.layers;
    bounds.rows = kMaxStepRows;
    bounds.steady = std::max(bounds.steady, layer.sinks + layer.tail_capacity);
    const HeadShape shape = shape_of(spec);
    bounds.head.heads = std::max(bounds.head.heads, shape.heads);
    bounds.head.key_dim = std::max(bounds.head.key_dim, shape.key_dim);
    bounds.head.value_dim = std::max(bounds.head.value_dim, shape.value_dim);
    bounds.kv_heads = std::max(bounds.kv_heads, spec.kv_heads);
    add_choice_bounds(options, method, spec, cuts, *plan, &bounds);
  }
  plan->step_bounds = bounds;
  plan->step_there = {};
  if (bounds.layers > 0) plan->step_there = step_bytes(bounds).value_or(StepBytes{});
}

}  // namespace

void plan_steps_there(const CacheOptions& options, const Method& method, const TextCuts& cuts,
                      CachePlan* plan) {
  plan_steps_of(
      options, method, cuts, [&](std::size_t l) { return may_stay(options, method, l, *plan); },
      plan);
  // What is fetched has the same answer for every budget: whether rows stay depends on none.
  plan->steps_there = plan->step_bounds.layers > 0 && plan->step_there.device > 0 &&
                      (method.fetches() || plan->device_bytes() <= plan->bytes_of(Tier::device));
  if (plan->steps_there) return;
  plan->tails_there_bytes = 0;
  plan->step_there = {};
}

void drop_steps_there(const CacheOptions& options, const Method& method, const TextCuts& cuts,
                      CachePlan* plan) {
  if (!plan->steps_there) return;
  for (std::size_t l = 0; l < plan->layers.size(); ++l) {
    CachePlan::Layer& layer = plan->layers[l];
    layer.stays_there =
        may_stay(options, method, l, *plan) && (layer.rows == 0 || layer.chosen_there());
  }
  plan_steps_of(
      options, method, cuts, [&](std::size_t l) { return plan->layers[l].stays_there; }, plan);
}

}  // namespace thermocline
