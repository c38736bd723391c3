// What a session's file takes beside rows, and what saving and resuming it take.
#pragma once

#include "kernels/base/error.h"
#include "runtime/cache_plan.h"
#include "runtime/kv_cache.h"
#include "runtime/layer_spec.h"
#include "runtime/method.h"
#include "runtime/text_cuts.h"

namespace thermocline {

// What a session keeps of a layer's segments, in each timeline, beside them.
void plan_records(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                  const CachePlan::Layer& layer, const TextCuts& cuts, CachePlan* plan);

// The text and a timeline's raw rows, which are published whole, one publication beside the last:
// once all layers are planned.
void plan_publication(const CacheOptions& options, const TextCuts& cuts, CachePlan* plan);

// unsupported: a session is what its file holds, and no row may be at home elsewhere.
Status check_kept(const Method& method, const CachePlan& plan);

}  // namespace thermocline
