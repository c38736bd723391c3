// Which layers' rows stay on a device in a decode step, and what it takes for that beside sealed
// rows: copies of sinks and tails, and what a step works in.
#pragma once

#include "runtime/cache_plan.h"
#include "runtime/kv_cache.h"
#include "runtime/method.h"
#include "runtime/text_cuts.h"

namespace thermocline {

// Of all layers that may, before any is planned: so much of a device is spent before sealed rows
// are at home there. Of none, if it is given less than that; but where it fetches, whose answers
// depend on no budget.
void plan_steps_there(const CacheOptions& options, const Method& method, const TextCuts& cuts,
                      CachePlan* plan);

// And of those that do, once all layers are.
void drop_steps_there(const CacheOptions& options, const Method& method, const TextCuts& cuts,
                      CachePlan* plan);

}  // namespace thermocline
