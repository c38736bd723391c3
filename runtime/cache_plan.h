// How many bytes a cache takes in which tier, before it takes any.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/device_prefill.h"
#include "kernels/device_step.h"
#include "runtime/kv_cache.h"
#include "runtime/method.h"
#include "runtime/text_cuts.h"
#include "tiers/block.h"
#include "tiers/budget.h"
#include "tiers/store/stores.h"

namespace thermocline {

struct CachePlan {
  struct Layer {
    RowLayout raw, sealed;  // in tail and sinks; in segments
    std::uint32_t sinks = 0, tail_capacity = 0;
    std::uint32_t tail_rows = 0;    // that stay in it from one step to the next, at most
    std::uint64_t votes_bytes = 0;  // of a timeline: its TailVotes, where steps vote
    bool seals = false;             // full attention, and the method keeps what leaves the tail
    // Among the layers that are fitted together, and how many those are.
    std::uint32_t place = 0, together = 1;
    std::uint32_t rows = 0;  // sealed rows a KV head, at most, all timelines together
    // Beside them, of segments that others are formed into, until those go.
    std::uint32_t joint_rows = 0;
    StoreFacts home;       // of those
    bool fetched = false;  // to be attended by a device in a decode step, which is not their home
    bool prefilled_there = false;  // by a device: of a prefill all that the layer's queries see
    // Whether a device that attends them chooses among them in a decode step, or the host does
    // whoever attends; and what it has beside them, by which it chooses.
    bool may_choose = false;
    std::uint64_t choosing_bytes = 0;
    bool chosen_there() const { return may_choose && (home.reach == Reach::device || fetched); }
    // In a decode step rows of the layer do not leave the device that computes it.
    bool stays_there = false;
    // Of a timeline: slots there for those that it fetches, of all KV heads.
    std::uint64_t slots_bytes = 0;
    // Of a selector that remembers: where a selection may be, in a timeline's longest text, and
    // what its two of each KV head take.
    std::uint64_t selection_runs = 0, selection_blocks = 0, selections_bytes = 0;
    // A row is found by a number, those of a segment side by side: what short ones give back may
    // not be, when the next joint wants its own.
    std::uint32_t row_numbers() const { return rows + 2 * joint_rows; }
    bool in_pages() const { return rows > 0 && home.reach == Reach::pages; }
  };
  std::vector<Layer> layers;
  std::vector<std::vector<LayerId>> groups;  // all layers: those that are fitted together, or one
  std::uint64_t tail_bytes = 0, index_bytes = 0, staging_bytes = 0, tables_bytes = 0;
  std::uint64_t device_index_bytes = 0;  // of layers whose rows a device chooses among
  // Where it chooses among rows at home elsewhere, and fetches those that it has no copy of: for
  // how many each KV head of a timeline has slots there, in all such layers alike, and among how
  // many.
  struct Slots {
    std::uint32_t of_head = 0, rows = 0;
  } slots;
  std::uint64_t slots_bytes = 0;  // of all layers and timelines
  // Where rows of a decode step stay on a device, in which it has sinks and tails of all timelines
  // as well: those, what a step has at most, and what it works in.
  bool steps_there = false;
  std::uint64_t tails_there_bytes = 0;
  StepBounds step_bounds;
  StepBytes step_there;
  std::uint64_t selections_bytes = 0;  // of all layers and timelines
  // What the segment that others are formed into takes beside them, of a timeline: in one layer, or
  // in all that take their turn together.
  struct Joint {
    std::array<std::uint64_t, kTiers> rows_bytes{};
    std::uint64_t index_bytes = 0, tables_bytes = 0, records_bytes = 0, device_index_bytes = 0;
  } joint;
  std::uint64_t spare_tail_bytes = 0;  // a second tail for one timeline, of every layer
  std::uint64_t span_bytes = 0;        // raw rows of the layer in hand
  // Of one segment, beside all that is sealed: the queries that are seen of it, then its coded
  // rows; and rows of layers that are fitted together, until all are there.
  std::uint64_t coding_bytes = 0;
  std::uint64_t voting_bytes = 0;   // beside that, where some are dropped: the vote, what is kept
  std::uint64_t writing_bytes = 0;  // and the pages that they go to, until they are written
  std::uint64_t fitting_bytes = 0;  // what a fitter computes with meanwhile, which no ledger has
  std::array<std::uint64_t, kTiers> rows_bytes{};  // of all sealed rows, in their home tiers
  // Of a session, beside rows: their records and what is published, in the file; memory to put the
  // latter together; and to have what is resumed as it was, beside a segment that is brought back,
  // and a head's rows where there is a row cache to begin with them.
  std::uint64_t records_bytes = 0, published_bytes = 0, saving_bytes = 0, restoring_bytes = 0,
                warming_bytes = 0;
  // Of the former: of segments that the last save alone refers to.
  std::uint64_t replaced_bytes = 0;
  std::uint32_t row_cache_rows = 0;  // a layer and KV head
  std::uint64_t row_cache_bytes = 0;
  // Where a device attends what the host chooses: what it works in there, and as much on the host,
  // pinned. And what it works in where it chooses itself, and is sent what it misses from a disk.
  std::uint64_t device_work_bytes = 0;
  ChoiceBytes choice;
  std::string no_choice;  // why the host chooses among rows of a device, where it might have
  // What a device works in while it attends a prefill, of whichever layer; why the host does in
  // some of them, where a device does in others.
  PrefillBytes prefill;
  std::uint32_t prefill_rows = 0;  // queries in a head that it is of
  std::string no_prefill;
  // Of layers that the method's settings name and that choose nothing: a line each.
  std::vector<std::string> idle_layers;
  // Where a device attends rows at home elsewhere that the host chooses: what a launch takes at
  // most of folds and their rows, and what it works in beside those, there and on the host, pinned;
  // of each of kFetchLaunches.
  static constexpr std::uint64_t kFetchLaunches = 2;
  struct Fetch {
    std::uint64_t folds = 0, rows_bytes = 0, work_bytes = 0;
    std::uint64_t bytes() const { return kFetchLaunches * (rows_bytes + work_bytes); }
  } fetch;
  bool fetches() const { return std::ranges::any_of(layers, &Layer::fetched); }
  StoreOptions stores;  // what the ledger will allow in each tier
  // Attention's workspace, beside the budget. Of a prefill's longest span: the tiles' queries and
  // states, and what each thread computes in. Of each row of a decode step: its rotated queries,
  // and a state for every list and every fold that may be read; and scores where it votes. All in
  // the layer that takes most.
  std::uint64_t tile_query_bytes = 0, tile_state_bytes = 0, tile_scratch_bytes = 0;
  std::uint64_t tile_position_bytes = 0;
  std::uint64_t angle_bytes = 0;  // of a step's positions under every rotary embedding
  std::uint64_t decode_query_floats = 0, decode_states = 0, decode_state_floats = 0;
  std::uint64_t decode_score_floats = 0;  // of whichever step: a tail's, of each query head
  std::uint64_t step_rows = 0;            // rows of a decode step: one for each timeline, at most

  std::uint64_t bytes_of(Tier tier) const { return stores.bytes[static_cast<std::size_t>(tier)]; }
  // A segment is formed or a session saved, both beside the span of a prefill; or one is resumed,
  // before which that goes: never two of these at a time.
  std::uint64_t sealing_bytes() const {
    return spare_tail_bytes +
           std::max(
               span_bytes + std::max(coding_bytes + voting_bytes + writing_bytes, saving_bytes),
               restoring_bytes + (row_cache_rows > 0 ? warming_bytes : 0));
  }
  // What rows take in a tier, and beside them on a device what it chooses by, on the disk what a
  // session keeps.
  std::uint64_t home_bytes(Tier tier) const {
    return rows_bytes[static_cast<std::size_t>(tier)] +
           (tier == Tier::device ? device_index_bytes : 0) +
           (tier == Tier::disk ? records_bytes + published_bytes : 0);
  }
  std::uint64_t device_bytes() const {
    return home_bytes(Tier::device) + slots_bytes + tails_there_bytes + device_staging_bytes();
  }
  // What a device works in: of its memory, and of the host's.
  std::uint64_t device_staging_bytes() const {
    return device_work_bytes + fetch.bytes() + choice.device + prefill.device + step_there.device;
  }
  std::uint64_t pinned_bytes() const {
    return device_work_bytes + fetch.bytes() + choice.host + choice.outbox + prefill.host +
           step_there.host;
  }
  std::uint64_t host_bytes() const;
  // All of it, by tier.
  std::array<std::uint64_t, kTiers> needed_bytes() const {
    return {device_bytes(), host_bytes(), home_bytes(Tier::disk)};
  }
  std::uint64_t workspace_bytes() const;
  std::uint64_t allowance_bytes() const;  // of the process beside all of this, in no ledger
  MemoryPlan lines() const;
  std::vector<std::string> notes() const;  // what was asked for and has no effect, or part of it
};

// For `threads` threads, on a machine that can still give `available_bytes` of memory: what is
// planned there fits that, with all that is computed in beside it, however large a budget is.
// Of an engine's caches `whole` is the ledger, what is free in which is all that there is; null: it
// is of no engine. exhausted: what is needed, what there is, which flag or limit to change.
// invalid_argument: what no memory would be enough for, or rows too many to be numbered.
Result<CachePlan> make_plan(const CacheOptions& options, const Method& method, int threads,
                            std::uint64_t available_bytes, const Budget* whole = nullptr);

}  // namespace thermocline
