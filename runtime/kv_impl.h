// What a KvCache is made of. Its work is in seventeen files: kv_cache.cpp (the face, and the life
// of a step), kv_timeline.cpp (the life of a timeline), kv_session.cpp (its life beyond the
// process's), kv_copy.cpp (from one cache to another), kv_observe.cpp (what a study is shown),
// kv_order.cpp (what of a step may come when), kv_attend.cpp (decode), kv_device.cpp (what of it a
// device attends), kv_chosen.cpp (and chooses), kv_there.cpp (where a step's rows stay on it),
// kv_prefill.cpp (many rows at once), kv_prefill_there.cpp (on a device), kv_seal.cpp (tail to
// segments), kv_join.cpp (short segments to one), kv_fit.cpp (what their rows share), kv_gather.cpp
// (and those of several layers), kv_retain.cpp (what attended rows of the tail, and which of them
// stay then) and kv_warm.cpp (what is in front of a disk then).
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/stopwatch.h"
#include "kernels/base/workers.h"
#include "kernels/cpu/table.h"
#include "kernels/device.h"
#include "runtime/cache_plan.h"
#include "runtime/fetch_launch.h"
#include "runtime/joint.h"
#include "runtime/key_balance.h"
#include "runtime/kv_cache.h"
#include "runtime/method.h"
#include "runtime/query_sample.h"
#include "runtime/query_tiles.h"
#include "runtime/session_manifest.h"
#include "runtime/timeline_state.h"
#include "runtime/voting.h"
#include "tiers/budget.h"
#include "tiers/page_table.h"
#include "tiers/reader.h"

namespace thermocline {

// Floats that grow and never shrink: scratch of the step.
class Scratch {
 public:
  // Room for `count`; the first `keep` of them stay as they are.
  Result<float*> floats(std::size_t count, std::size_t keep = 0) {
    if (count * sizeof(float) > buffer_.size()) {
      TL_TRY_ASSIGN(Buffer larger, Buffer::create(count * sizeof(float)));
      std::copy_n(data(), keep, reinterpret_cast<float*>(larger.data()));
      buffer_ = std::move(larger);
    }
    return data();
  }
  float* data() const { return reinterpret_cast<float*>(buffer_.data()); }
  std::uint64_t bytes() const { return buffer_.size(); }

 private:
  Buffer buffer_;
};

// One answer for all threads of an attend(): once a stop was seen it stays seen, so work that was
// cut short is never taken for whole.
class StopSign {
 public:
  StopSign() = default;
  explicit StopSign(const StopAsked& asked) : asked_(asked ? &asked : nullptr) {}
  bool seen() const {
    if (asked_ && !seen_.load(std::memory_order_relaxed) && (*asked_)())
      seen_.store(true, std::memory_order_relaxed);
    return seen_.load(std::memory_order_relaxed);
  }
  Status check() const {
    if (!seen()) return {};
    return fail(ErrorCode::cancelled, "attend() was stopped");
  }

 private:
  const StopAsked* asked_ = nullptr;
  mutable std::atomic<bool> seen_ = false;
};

struct KvCache::Impl {
  struct Joined {
    Joint of;
    Run run;
  };
  // What of one layer the step in progress will change when it ends, beside its new rows.
  struct Pending {
    // Where the rows are that stay raw: in the tail, which stays as it is; behind those that leave
    // it; or in the layer's spare tail.
    enum class Tail : std::uint8_t { as_it_is, behind, spare };
    Tail tail = Tail::as_it_is;
    std::uint32_t tail_first = 0;  // of the tail to be, unless it stays as it is
    std::vector<Run> new_runs;     // after the timeline's
    std::optional<Joined> joined;  // in place of some of the timeline's
  };
  // How far a layer is in the step. One whose attend() failed has to be rolled back.
  enum class Stage : std::uint8_t { due, appended, attended, failed };
  struct Angles {  // of one rotary embedding
    const RopeSpec* rope = nullptr;
    Rotation rotation;                         // at any position, for rows that are rebuilt
    Scratch tables;                            // the next two
    float *cosine = nullptr, *sine = nullptr;  // [rows][pairs], for the rows of a step
  };
  struct SteadyFold {  // of one list, over sinks or tail
    std::uint32_t list = 0;
    RawRows rows;                        // of all KV heads
    std::uint32_t first = 0, count = 0;  // of `rows`, in the list's head
  };

  // Segments of the same rows in layers that are fitted together, until the last of those has its
  // own: what it takes to fit them then.
  struct Gathered {
    std::vector<std::shared_ptr<Segment>> segments;  // of the layers so far
    RawStore rows;  // of the side that is fitted so, of all layers; none where a file has the fit
    Reservation memory;
    std::vector<std::vector<std::uint32_t>> always;  // [KV head of all layers], as in Formation
  };

  struct Choice {  // what one took
    Result<Chosen> cost;
    double ms = 0;
  };

  // What a device is asked of a layer, and of which list each question is.
  struct Questions {
    std::vector<IndexedRows> runs;  // of all of them, which refer to these
    std::vector<ChoiceQuestion> of;
    std::vector<std::uint32_t> lists;
  };
  // A layer of the step in progress whose rows stay on a device.
  struct ThereLayer {
    LayerId layer{};
    Questions asked;  // of rows within its reach
  };

  CacheOptions options;
  std::unique_ptr<Workers> own_workers;
  const Workers* workers = nullptr;
  const CpuTable* cpu = nullptr;
  Method method;
  CachePlan plan;
  Budget* of_engine = nullptr;  // of all of its caches; null: this is of no engine
  std::unique_ptr<Budget> budget;
  std::vector<std::string> notes;
  std::unique_ptr<PageTable> table;
  std::unique_ptr<Reader> reader;
  // Where rows are at home on a device: of layers in which the host chooses, and it does.
  std::unique_ptr<DeviceAttention> device_attention;
  std::unique_ptr<DeviceChoice> device_choice;
  std::unique_ptr<DeviceStep> device_step;  // and where a step's rows stay there
  std::unique_ptr<DevicePrefill> device_prefill;
  std::vector<FetchLaunch> fetch_launches;  // where it attends others
  std::size_t next_launch = 0;
  Reservation device_memory, pinned_memory;  // that all of these work in
  std::optional<SessionManifest> saved;      // in the session's file, until it is resumed
  Reservation saved_memory;
  CacheReport counted;
  AttendObserver* observer = nullptr;
  std::vector<std::vector<std::uint32_t>> joining;        // layers that seal, as they take turns
  std::vector<std::unique_ptr<TimelineState>> timelines;  // by id; null: free

  // The step in progress.
  std::vector<Token> rows;
  std::vector<std::uint32_t> advanced;  // by timeline: rows of this step
  Pass pass = Pass::decode;             // decode or prefill
  std::uint32_t sees_from = 0;          // of a prefill: the first position that its rows may read
  std::vector<Stage> stages;            // by layer
  std::vector<Angles> angles;
  std::vector<std::uint32_t> angles_of_layer;
  std::vector<KeyBalance> balances;  // by layer
  std::vector<Pending> pending;      // [timeline][layer]
  // Raw rows of the layer in hand: of a prefill, its tail and new rows; of a cut, what was read
  // back.
  RawStore span;
  std::vector<Gathered> gathered;
  // By layer: where a prefill or a cut, which are one timeline's, leaves the tail to be.
  std::vector<RawStore> spare_tails;
  Reservation span_memory, spare_memory;

  // Scratch of attend(), of a decode for `decode_rows` rows.
  std::size_t decode_rows = 0;
  Scratch query_scratch, partial_scratch, score_scratch;
  Scratch tile_scratch, tile_query_scratch, tile_state_scratch;
  std::vector<SteadyFold> steady_folds;
  std::vector<AttnState> partials, steady_states;
  std::vector<std::uint32_t> first_partial;  // of each list
  std::vector<ListQuery> list_queries;
  std::vector<ReadList> read_lists, expected_lists;
  std::vector<KeptSelection> shared_selections;  // of a selector that shares: [row][KV head]
  std::uint32_t shared_heads = 0;                // KV heads of the layers that those are of
  std::vector<Choice> choices;                   // by list
  std::vector<ReadRequest> requests;
  std::vector<std::uint8_t> damaged;
  std::vector<HeadFold> device_folds;         // of the layer in hand
  std::vector<std::uint32_t> device_partial;  // which of `partials` is the first of each
  Questions questions;                        // where a device chooses in the layer in hand
  std::vector<ThereLayer> there_layers;       // as they came, the first `there_begun` of them
  std::size_t there_begun = 0;
  std::vector<StepRow> there_rows;     // of the layer in hand
  std::vector<ReadList> missed_lists;  // of the questions in hand
  std::vector<PackedRows> packed;      // of the wave in hand; and where
  std::vector<std::byte*> packed_at;
  std::vector<std::uint32_t> tile_positions;
  std::vector<RowStretch> stretches;   // of a prefill's next launch
  std::vector<std::uint32_t> sending;  // folds of the wave in hand, as they are sent then

  Status open();
  const LayerSpec& spec(LayerId l) const { return options.layers[index(l)]; }
  HeadShape shape(LayerId l) const {
    const LayerSpec& s = spec(l);
    return {s.q_heads / s.kv_heads, s.key_dim, s.value_dim};
  }
  TimelineState& timeline(TimelineId id) { return *timelines[index(id)]; }
  LayerState& layer_state(TimelineId id, LayerId l) { return timeline(id).layers[index(l)]; }
  Pending& pending_of(std::uint32_t timeline, std::uint32_t layer) {
    return pending[timeline * options.layers.size() + layer];
  }

  std::uint64_t workspace_bytes() const;

  Status begin(std::span<const Token> step_rows, Pass step_pass);
  Status compute_angles(std::span<const Token> step_rows);
  void rotate(LayerId l, std::size_t row, float* head) const;
  // In place, one head's for `row` of the step: a key as it is kept, a query as it asks keys that
  // are kept so, scaled.
  void turn_key(LayerId l, std::size_t row, float* key) const;
  void turn_query(LayerId l, std::size_t row, float* query) const;
  Status append(LayerId l, MatView<const float> keys, MatView<const float> values);
  void append_row(LayerId l, std::size_t row, std::uint32_t head, const float* key,
                  const float* value, std::byte* record) const;
  Status commit();
  // Room for a layer's pending runs behind its first `kept`: taking them over then takes no memory.
  void make_room(std::uint32_t timeline, std::uint32_t layer, std::size_t kept);
  // Makes what is pending in a layer the timeline's, of `length` positions then. Cannot fail.
  void take_over(std::uint32_t timeline, std::uint32_t layer, std::uint32_t length) noexcept;
  void rollback();
  // What the step in progress left of selections becomes what the next one finds; where rows were
  // sealed there is nothing to be found.
  static void take_over_selections(LayerState* layer, bool sealed) noexcept;

  // kv_order.cpp: invalid_argument, saying what was given and what is due.
  Status check_there(LayerId l) const;
  Status check_append(LayerId l, MatView<const float> keys, MatView<const float> values) const;
  Status check_attend(LayerId l, MatView<const float> queries, MatView<float> out) const;
  Status check_commit() const;
  Status check_layer(const char* call, LayerId l) const;
  Status check_shape(const char* call, const char* what, std::size_t given_rows,
                     std::size_t given_cols, std::size_t due_cols) const;

  // kv_attend.cpp
  Status attend(LayerId l, MatView<const float> queries, MatView<float> out);
  // Which rows of sinks and tail row `r` of the step attends always: the first of the sinks, and of
  // the tail so many from position `first` on.
  struct SteadyRows {
    std::uint32_t sinks = 0, first = 0, tail = 0;
  };
  SteadyRows steady_of(LayerId l, std::size_t r);
  void list_steady(LayerId l);
  Status attend_steady(LayerId l, const float* rotated);
  Status attend_runs(LayerId l, const float* rotated);
  bool list_queries_of(LayerId l, const float* rotated);
  void lend_selections(LayerId l);
  void choose(LayerId l, std::size_t list);
  Status choose_and_attend(LayerId l, std::size_t first, std::size_t last,
                           std::span<const ReadyFold> wave);
  // `destinations`: where each fold of the wave is to be packed; null, or none at all: it is the
  // host's to attend.
  Status choose_and_take(LayerId l, std::size_t first, std::size_t last,
                         std::span<const ReadyFold> wave, std::span<std::byte* const> destinations);
  Status plan_reads(LayerId l, std::size_t first, std::size_t last);
  void expect_next(LayerId l);
  void merge_partials(LayerId l);
  void count_reads();

  // kv_device.cpp
  Status open_device_attention();
  // Queues the layer's folds that lie on a device, all of which are planned: what was begun of
  // them.
  Result<std::size_t> begin_on_device(LayerId l);
  // Leaves the states of those in `partials`, and of what there was no room to begin.
  Status finish_on_device(LayerId l, std::size_t begun);
  // `into`: of each fold, which of `partials` is the first.
  void take_states(LayerId l, const DeviceAttention::States& states,
                   std::span<const std::uint32_t> into);
  // What a step that was given up has left in launches.
  Status drop_fetched();
  // The one whose turn it is, when what it had is finished.
  Result<FetchLaunch*> free_launch(LayerId l);
  // Gives the launch as many folds of the wave, from its first on, as it takes: how many.
  std::size_t address(LayerId l, std::span<const ReadyFold> wave, FetchLaunch* launch) const;
  Status begin_launch(LayerId l, FetchLaunch* launch);
  // Leaves the states of what it has, if anything, in `partials`.
  Status finish_launch(LayerId l, FetchLaunch* launch);
  Status finish_fetched(LayerId l);  // all of them

  // kv_chosen.cpp
  // What attend_runs() does, of a layer in which a device chooses.
  Status attend_chosen_there(LayerId l);
  Status answer_questions(LayerId l);
  // Has those rows read that the device misses for the questions from `first` on, and sends them.
  Status send_missed(LayerId l, std::size_t first);
  Status send_wave(LayerId l, std::span<const ReadyFold> wave);
  void ask_device(LayerId l, Questions* asked);
  ChoiceFormat choice_format(LayerId l) const;
  // Merges what came back for the questions from `first` on, or gives it to the device that goes on
  // with it, and counts what was read for it.
  Status take_answer(LayerId l, std::size_t first, const DeviceChoice::Answer& answer);
  void count_answer(const ChoiceFormat& format, const ChoiceQuestion& question, std::uint32_t read,
                    std::uint32_t summaries);
  // Of keys that were rebuilt, `of_runs` rows in each of a list's runs.
  void count_rebuilt(std::span<const Run> runs, std::span<const std::uint32_t> of_runs);
  // Of rows that were read where the device has them, or brought there first.
  void count_rows(const ChoiceFormat& format, const ChoiceQuestion& question, std::uint32_t read,
                  std::uint32_t fetched);
  // To an observer: what a list read, as if it had been chosen here.
  Status note_chosen(std::size_t list, std::size_t answered);

  // kv_there.cpp
  Status open_tails_there(TimelineState* state);
  bool stays_there(LayerId l) const { return plan.layers[index(l)].stays_there && !observer; }
  Status attend_there(LayerId l, const RowsThere& at);
  Status list_there(LayerId l);  // leaves there_rows
  // Leaves list_queries, without what is on the device; false if no list has a sealed run.
  bool list_queries_there(LayerId l);
  Status choose_there(LayerId l, ThereLayer* layer);
  Status choose_elsewhere(LayerId l);
  // Takes the step's records into sinks and tails, and counts what was read.
  Status take_back_there();
  void take_records(LayerId l, const std::byte* records);
  void count_there(const ThereLayer& layer, const DeviceStep::Answer& answer);

  // kv_prefill.cpp
  Status prefill_attend(LayerId l, MatView<const float> queries, MatView<float> out,
                        const StopAsked& stop);
  // `raw`: tail and new rows.
  Status prefill_here(LayerId l, MatView<const float> queries, const RawRows& raw,
                      MatView<float> out, const StopSign& stop);
  bool list_runs(LayerId l);
  Result<QueryTiles> cut_tiles(LayerId l);
  float* scratch_here(HeadShape heads) const {  // of this thread, for attend_tile()
    return tile_scratch.data() + Workers::slot() * tile_scratch_floats(heads);
  }
  template <typename Body>
  void for_tiles(const QueryTiles& tiles, const Body& body);
  void load_tiles(LayerId l, MatView<const float> queries, const QueryTiles& tiles);
  void tiles_read_sinks(LayerId l, const QueryTiles& tiles, const StopSign& stop);
  Status tiles_read_runs(LayerId l, const QueryTiles& tiles, const StopSign& stop);
  Status tiles_read_span(LayerId l, const RawRows& raw, const QueryTiles& tiles,
                         const StopSign& stop);
  void finish_tiles(const QueryTiles& tiles, MatView<float> out);

  // kv_prefill_there.cpp: what prefill_here() does, on a device.
  Status prefill_there(LayerId l, MatView<const float> queries, const RawRows& raw,
                       MatView<float> out, const StopSign& stop);
  Status send_queries(LayerId l, std::uint32_t step_row, MatView<const float> queries,
                      const PrefillShape& shape, const StopSign& stop);
  Status send_rows(LayerId l, const RawRows& raw, const PrefillShape& shape, const StopSign& stop);
  Status send_raw(const RawRows& raw, std::uint32_t origin, const StopSign& stop);
  Status send_runs(LayerId l, const StopSign& stop);
  Status attend_at_home(LayerId l);
  Result<std::size_t> send_folds(LayerId l, std::span<const ReadyFold> wave,
                                 std::span<const std::uint32_t> order);
  Status attend_stretches(const StretchFormat& format, std::uint64_t sent);
  Status take_results(const PrefillShape& shape, MatView<float> out, const StopSign& stop);

  // kv_retain.cpp
  struct Votes {
    const float* of_head = nullptr;  // [KV head][stride], from the first raw row on; null: none
    std::size_t stride = 0;
    Buffer counted;  // of a prefill
    Reservation memory;
  };
  struct KeptRows {
    RawRows rows;
    std::vector<std::uint32_t> which;  // [head][row]: of the cell's; empty: all
    RawStore store;                    // of `rows`, where some are dropped
    Reservation memory;
  };
  // Of the rows that a prefill has just attended: on those that leave the tail, and where steps
  // vote as well also on those that stay, as what was given to them so far.
  Result<Votes> count_votes(LayerId l, const RawRows& seen, MatView<const float> queries);
  // What each row of a decode step gives to those of its tail, once all that it attended is known.
  void vote_on_tails(LayerId l, const float* rotated);
  static Votes tail_votes(const LayerState& layer);  // with those of the step in progress
  // `from` is the first of the cell's rows among the `leave` that leave together.
  Result<KeptRows> keep_rows(LayerId l, const RawRows& cell, std::uint32_t from,
                             std::uint32_t leave, const Votes& votes);

  // kv_warm.cpp
  // After a prefill has attended: rows that its last queries would pick enter the row cache.
  // `sealed_now`: the runs that were made of `raw`.
  Status warm_row_cache(LayerId l, MatView<const float> queries, const RawRows& raw,
                        std::span<const Run> sealed_now);
  Result<std::vector<std::uint8_t>> count_last_picks(LayerId l, MatView<const float> queries,
                                                     std::span<const Run> runs);

  // kv_timeline.cpp
  Result<TimelineId> new_timeline();
  Status open_spare_tails();
  // Room for what is to be remembered of a timeline's selections.
  Status open_selections(TimelineState* state);
  // And for copies of the rows that a device fetches, on it.
  Status open_slots(TimelineState* state);
  Status copy_slots(const TimelineState& from, TimelineState* to);
  // Room for decode steps of so many rows of the longest timelines: no step grows it.
  Status open_decode(std::size_t step_rows);
  Result<TimelineId> fork(TimelineId id);
  Status truncate(TimelineId id, std::uint32_t length);
  void end(TimelineId id);
  // Whether every row that a query at `length` would need is still there.
  Status check_cut(TimelineId id, std::uint32_t length);
  // Leaves in `span` a layer's rows from where its run `first_run` begins up to position `end`.
  Status restore(LayerId l, const LayerState& layer, std::size_t first_run, std::uint32_t end);
  // Puts a run's rows before `end` into `span`, whose row 0 is at `first`.
  Status read_back(LayerId l, const Run& run, std::uint32_t first, std::uint32_t end);

  // kv_copy.cpp
  Status copy(Impl& other, TimelineId from, TimelineId into, const StopAsked& stop);
  // Layers that are fitted together, or one.
  Status copy_layers(Impl& other, std::span<const LayerId> layers, const TimelineState& from,
                     const StopSign& stop, TimelineState* into);
  // Leaves in `to` a layer's raw rows of the positions [first, end).
  Status read_rows(LayerId l, const LayerState& layer, std::uint32_t first, std::uint32_t end,
                   RawStore* to);

  // The same of another cache's, as this one keeps them.
  Status take_rows(Impl& other, LayerId l, const LayerState& layer, std::uint32_t first,
                   std::uint32_t end, RawStore* to) const;

  // kv_observe.cpp
  void tell_observer(LayerId l, const float* rotated);
  Status read(TimelineId id, LayerId l, std::uint32_t first, MatView<float> keys,
              MatView<float> values);

  // kv_session.cpp
  std::string session_name() const { return "--session " + options.session.path; }
  static std::vector<SessionFact> facts_of(const CacheOptions& options, const Method& method);
  // invalid_argument: what a session holds was made with other ones.
  static Status check_facts(const CacheOptions& options, const Method& method,
                            std::span<const SessionFact> held);
  // Reads what was saved in the file: nothing, or of the same facts.
  Status open_session();
  Result<TimelineId> resume();
  bool tail_may_begin(LayerId l, std::uint32_t tail_first, std::uint32_t length) const;
  Status check_cut_alike(const TimelineState& state) const;
  Status restore_layer(LayerId l, const SessionManifest::Layer& from, std::uint32_t length,
                       LayerState* layer, std::vector<Gathered>* waiting);
  // `before`: the run before it in the timeline; null: there is none. `waiting` as in load_fits().
  Result<Run> read_run(LayerId l, const PageTable::Record& record, const Run* before,
                       std::vector<Gathered>* waiting);
  Status save(TimelineId id, const SessionText& text);
  Status leave_session();

  // kv_seal.cpp
  Status shape_span(LayerId l, std::size_t span_rows);
  Status open_span(LayerId l);
  // How many of the raw rows of the positions [first, end) are to leave a tail that ends there.
  std::uint32_t rows_to_leave(LayerId l, std::uint32_t first, std::uint32_t end) const;
  // Forms segments of the first `leave` of the raw rows, or of what is kept of them, and appends
  // them to `runs`. `before`: the timeline's run before those; null: there is none. `queries`: of a
  // prefill, those of the step, as attend() got them.
  Status seal(LayerId l, const RawRows& raw, std::uint32_t leave, const Run* before,
              std::vector<Run>* runs, const Votes& votes, const StopSign& stop,
              MatView<const float> queries);
  // `which` [head][row]: position of a row less that of the first; empty: they follow each other.
  Result<Run> form(LayerId l, const RawRows& rows, const Run* before,
                   std::span<const std::uint32_t> which = {}, MatView<const float> queries = {});
  // [KV head][sample][head][key_dim], rotated and scaled.
  void sample_queries(LayerId l, MatView<const float> queries, const QuerySample& sample,
                      float* out) const;
  // Memory for the index of so many rows; and what of a formation lies beside its rows, in it.
  Result<Reservation> reserve_index(LayerId l, std::uint32_t sealed_rows);
  Status attach(LayerId l, Formation formation, Reservation memory, Run* run);
  // Waits until what was sealed is on the disk, and nothing is in flight: it fails where a write
  // did.
  Status await_sealed();
  // Decides what becomes of raw rows at the end of a step: sealed, dropped, or the new tail, which
  // is left `where` it says. `before`: the runs that stay the timeline's. `votes`: on the raw rows.
  Status settle(LayerId l, const RawRows& raw, std::span<const Run> before, Pending::Tail where,
                Pending* into, const Votes& votes, const StopSign& stop = {},
                MatView<const float> queries = {});

  // kv_join.cpp
  // Of a timeline that the step in progress advances: forms what is due in one layer's turn.
  Status join_runs(std::uint32_t timeline);
  Status join(std::uint32_t timeline, std::uint32_t layer, const Joint& joint);
  // Where runs lack some rows, those that are there lie in `span` with room between them: puts each
  // head's together. Returns which they are, as form() takes it; none where nothing lacks.
  std::vector<std::uint32_t> close_up(LayerId l, std::span<const Run> runs, const Joint& joint);

  // kv_fit.cpp
  std::uint32_t side_dim(LayerId l, Side side) const;
  const Rotation* rotation_of(LayerId l, Side side) const;  // null: there is none
  // `offsets`: of an own part, those of its segment.
  Status hold(LayerId l, Buffer bytes, std::span<const std::uint16_t> offsets,
              std::shared_ptr<const FitBytes>* part);
  // Leaves in `segment`, which is otherwise complete, what its rows share. `before`: the segment
  // before it in the timeline; null: there is none. `queries` as in seal().
  Status fit_rows(LayerId l, const RawRows& raw, const Formation& formation, const Segment* before,
                  MatView<const float> queries, Segment* segment);
  Result<SegmentFit> fit_side(LayerId l, const Fitter& fitter, const Fitting& fitting);
  // What a device that chooses rebuilds the keys of a segment's head from; none where it need not.
  LowRankKeys low_rank_there(const Segment& segment, std::uint32_t head) const;
  // Of a prefill's last queries, rotated: [KV head][channel].
  Result<std::vector<float>> query_squares(LayerId l, MatView<const float> queries) const;
  std::vector<RankReport> ranks(TimelineId id);
  void save_fits(const Segment& segment, const Segment* before, RecordWriter* out) const;
  // `waiting`: of the layers before, whose fit may be in the record of this segment.
  Status load_fits(LayerId l, const Segment* before, RecordReader* in,
                   const std::shared_ptr<Segment>& segment, std::vector<Gathered>* waiting);

  // kv_gather.cpp
  // As fit_rows(), of a segment that was adopted, where layers are fitted together: with those of
  // the layers before it, once it is the last of them.
  Status fit_layers(const RawRows& raw, const Formation& formation, const Segment* before,
                    const std::shared_ptr<Segment>& segment);
  // Puts a segment to those of the same rows in the layers before it; null: there are none.
  Gathered* join(const std::shared_ptr<Segment>& segment, std::vector<Gathered>* among) const;
  bool complete(const Gathered& of) const;  // whether every layer's is there
  // The rows of the segment that joined last.
  Status gather(const RawRows& raw, Side side, const Formation& formation, Gathered* into);
  static void share_fit(const SegmentFit& fit, Side side,
                        std::span<const std::shared_ptr<Segment>> segments);
};

}  // namespace thermocline
