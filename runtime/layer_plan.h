// What one layer takes: its sinks and tail, the span of a prefill, votes, memory that attention
// computes in; and, where it seals, what sealed_plan.h counts.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/cache_plan.h"
#include "runtime/kv_cache.h"
#include "runtime/layer_spec.h"
#include "runtime/method.h"
#include "runtime/text_cuts.h"

namespace thermocline {

// invalid_argument: layer `l` has heads that nothing here attends.
Status check_layer(const LayerSpec& spec, std::size_t l);

// Of layers that seal so many as the method fits together, one after the other, as long as their
// rows are alike; every other layer alone.
std::vector<std::vector<LayerId>> groups_of(const CacheOptions& options, const Method& method);

// How many rows of a layer are raw, and how they lie.
void plan_tail(const CacheOptions& options, const Method& method, const LayerSpec& spec,
               CachePlan::Layer* layer);

// Adds the next layer to the plan: `layer` has its place among those that it is fitted with.
Status plan_layer(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                  const TextCuts& cuts, CachePlan::Layer layer, CachePlan* plan);

// And what the host attends a prefill of it in, where it does.
void plan_tiles(const LayerSpec& spec, const TextCuts& cuts, int threads, CachePlan* plan);

}  // namespace thermocline
