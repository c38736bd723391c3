// Which layers' rows stay on a device in a decode step, and what it takes for that beside sealed
// rows: copies of sinks and tails, and what a step works in.
#pragma once

#include "runtime/cache_plan.h"
#include "runtime/kv_cache.h"
#include "runtime/method.h"
#include "runtime/text_cuts.h"

namespace thermocline {

// Of all layers that may, if that is no more than the device is given, before any is planned: so
// much of it is spent before sealed rows are at home there.
void plan_steps_there(const CacheOptions& options, const Method& method, const TextCuts& cuts,
                      CachePlan* plan);

// And of those that do, once all layers are.
void drop_steps_there(const CacheOptions& options, const Method& method, const TextCuts& cuts,
                      CachePlan* plan);

}  // namespace thermocline
