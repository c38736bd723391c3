// What a layer's sealed rows take: where they are at home, and there; what is kept beside them;
// what a join takes, and what forming a segment takes meanwhile.
#pragma once

#include "kernels/base/error.h"
#include "runtime/cache_plan.h"
#include "runtime/kv_cache.h"
#include "runtime/layer_spec.h"
#include "runtime/method.h"
#include "runtime/text_cuts.h"

namespace thermocline {

// Of a layer of full attention under a method that keeps rows, beside sinks and tail.
Status plan_sealed(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                   const TextCuts& cuts, CachePlan::Layer* layer, CachePlan* plan);

}  // namespace thermocline
