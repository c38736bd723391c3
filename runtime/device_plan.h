// What a device takes beside rows: what it works in while it attends and chooses, what it chooses
// by, what it is sent rows in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/base/error.h"
#include "kernels/device_step.h"
#include "runtime/cache_plan.h"
#include "runtime/kv_cache.h"
#include "runtime/layer_spec.h"
#include "runtime/method.h"
#include "runtime/text_cuts.h"

namespace thermocline {

// What a device works in, of whichever layers will be at home there.
void plan_device_work(const CacheOptions& options, const Method& method, const TextCuts& cuts,
                      CachePlan* plan);

// Adds what a device attends a layer's prefill in. False: it does not take such heads, or rows as
// this method codes them, and the host does.
bool plan_prefill_there(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                        const TextCuts& cuts, CachePlan* plan);

// And not of those that are not, once all layers are planned; nor of a prefill, if the device has
// no part in any layer.
void drop_device_work(CachePlan* plan);

// What a device works in while it chooses among a layer's rows, and attends what it chose; none:
// the host chooses.
Result<ChoiceBytes> choice_of(const CacheOptions& options, const Method& method,
                              const LayerSpec& spec, const TextCuts& cuts, const CachePlan& plan);

// With what choosing in this layer takes of a step whose rows stay on the device, if it may.
void add_choice_bounds(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                       const TextCuts& cuts, const CachePlan& plan, StepBounds* bounds);

// What a device that chooses has beside a layer's rows: of all timelines, and of what a step's join
// makes of them.
std::uint64_t choosing_bytes_of(const CacheOptions& options, const Method& method,
                                const LayerSpec& spec, const CachePlan::Layer& layer,
                                const TextCuts& cuts, std::uint64_t step_rows);

// The least slots for rows that a device fetches, or is sent: a step's choice, so that there is one
// for each row that it reads. None: it fetches none, or the host chooses. `plan`: of the
// same layers, without any.
CachePlan::Slots slots_of(const CacheOptions& options, const Method& method, const CachePlan& plan);

// Of a layer and timeline.
std::uint64_t slots_bytes_of(const LayerSpec& spec, const CachePlan::Layer& layer,
                             const CachePlan::Slots& slots);

// What a device has of the layers from number `first` on where it fetches their rows, of every one:
// what it chooses by, and slots; 0: it fetches none. So much of it is spent before whole layers are
// at home there.
std::uint64_t fetching_bytes(const CacheOptions& options, const Method& method,
                             const TextCuts& cuts, const CachePlan& plan,
                             const CachePlan::Slots& slots, std::size_t first);

// As many slots as are worth more than a layer that is at home there, before any is; and, once all
// layers are planned, as many as there is room left for.
void take_useful_slots(const CacheOptions& options, const Method& method, const TextCuts& cuts,
                       CachePlan* plan);
void fill_with_slots(const CacheOptions& options, CachePlan* plan);

// Of a layer's sealed rows where they are at home on a device, at most, and of what lies there
// beside them.
std::uint64_t bytes_there(const LayerSpec& spec, const CachePlan::Layer& layer);

// What launches take of rows at home elsewhere that the host chooses: of layers that may be so, all
// that a step may read, or so much at a time. `plan`: of the same layers, without any.
CachePlan::Fetch fetch_of(const CacheOptions& options, const Method& method, const CachePlan& plan);

// unsupported: a device does not attend such heads, or rows as this method codes them. `no_choice`:
// why it does not choose among them, where it might have.
Status check_attended(const Method& method, const LayerSpec& spec, const CachePlan::Layer& layer,
                      const std::string& device, const std::string& no_choice);

// Layers that do not fit are at home elsewhere, which is what a placer is for. But a device that
// was given memory and gets no row of any is not what was asked for.
Status check_device_rows(const CacheOptions& options, const Method& method, const CachePlan& plan);

}  // namespace thermocline
