// The product: a KV cache over tiers that finds what each step reads. Our own layers and an
// embedder's drive it alike:
//
//   begin(rows, pass); for each layer { append(layer, k, v); attend(layer, q, out); } commit();
//
// (Of rows that are on a GPU, attend_there() is both.)
//
// Keys and queries come without rotary embedding: the cache rotates them (LayerSpec::rope), keys
// when they are appended. Nothing of a step is visible until commit(); after an error in the middle
// call rollback(), and every timeline is as it was.
//
// A call out of order or of the wrong shape is ErrorCode::invalid_argument and changes nothing: the
// step can go on. Each layer is appended once, then attended once; in Pass::prefill a layer is
// attended before the next one is appended.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/ids.h"
#include "kernels/base/view.h"
#include "runtime/course.h"
#include "runtime/layer_spec.h"
#include "runtime/report.h"
#include "runtime/session.h"
#include "runtime/stop_asked.h"

namespace thermocline {

class AttendObserver;
class Budget;
class Engine;
class KvCache;
class Workers;
struct CpuTable;
struct RowsThere;

inline constexpr std::uint64_t kAutoBytes = ~std::uint64_t{0};

struct TierOptions {
  // On a device: sealed rows of as many layers as fit whole live there, the others below; a size
  // that none fits is refused, unless the method has a device attend the others too, in room of
  // this that is planned first (Method::run). 0: none; auto: what is free, less a sixteenth.
  // `device` says which it is: "none", "cuda" or "cuda:N", or "host", host memory that stands in
  // for a GPU's and takes a size.
  std::uint64_t device_bytes = 0;
  std::string device = "none";
  // KV and its index in host memory; auto: what is free. With a disk: the index, the tail and
  // copies of rows; auto: no more of those than would make the disk cost memory.
  std::uint64_t host_bytes = kAutoBytes;
  std::uint64_t disk_bytes = 0;  // where sealed rows then live; 0: nothing goes to disk
  std::string directory = {};    // of the scratch file, on the disk to use; needed with disk_bytes
  std::string io_backend = "auto";  // or one of version().io_backends
};
// Whether there is such a device, in this build and machine. Every plan asks.
Status check_device(const TierOptions& tiers);

// Of the layers of a cache those from `first` on are computed by a GPU, the one of this number.
struct LayersThere {
  std::uint32_t device = 0, first = 0;
};

struct CacheOptions {
  std::vector<LayerSpec> layers = {};
  // Where these rows are on the GPU that tiers.device names they may stay there in a decode step
  // (KvCache::stays_there()). Engine::open_cache() says it of its own.
  std::optional<LayersThere> layers_there = {};
  std::string method = "exact";       // a name of configs/methods/, or a path to a file like those
  std::string method_directory = {};  // where names are looked up; empty: the installed one
  std::vector<std::string> method_overrides = {};  // "select.share=0.05": over the file's values
  TierOptions tiers = {};
  SessionOptions session = {};
  std::uint32_t max_positions = 8192;  // the longest timeline; sizes the plan
  std::uint32_t max_timelines = 1;     // at the same time; sizes the plan
  // Of each timeline: the plan is then of such a text. Without it, of the worst that comes to
  // max_positions, in whatever pieces.
  std::optional<Course> course = {};
  // What else will be taken of the machine's memory, beside the cache: no plan counts on it.
  std::uint64_t beside_bytes = 0;
};

// How the rows of a step are read.
enum class Pass : std::uint8_t {
  decode,   // at most kMaxStepRows rows of any timelines, each its own query: the method selects
  prefill,  // at most kSpanRows consecutive rows of one timeline: each reads everything before it
  // The same, of a text of its own: each reads what is before it in this step, as if the timeline
  // began there, but for the positions. Of an empty timeline, or one with all of its sinks.
  alone,
};
inline constexpr std::size_t kMaxStepRows = 16;
// A longer text is read in spans of so many rows, layer by layer within each, so that a layer's
// rows are all at hand when they are sealed. Memory is planned for one span.
inline constexpr std::uint32_t kSpanRows = 32768;

// One text's keys and values. Move-only; gives back what it holds when destroyed, and rolls back,
// for all of its timelines, a step in progress that has rows of this one. Its cache must outlive
// it. One that start() did not make, or that was moved from, is of no cache: 0 positions.
// Not thread-safe: one thread drives a cache and all of its timelines.
class Timeline {
 public:
  Timeline() = default;
  Timeline(Timeline&& other) noexcept;
  Timeline& operator=(Timeline&& other) noexcept;
  ~Timeline();

  TimelineId id() const { return id_; }
  std::uint32_t length() const;  // committed positions
  // A second timeline with the same past; sealed rows are shared, not copied.
  Result<Timeline> fork() const;
  // Forgets the positions from `length` on; not in the middle of a step. As many rows are raw then
  // as in any timeline of that length: sealed ones are read back for it, which may take as long as
  // sealing them did. They are what their codec kept: with raw rows, a timeline that was read in
  // one prefill and cut goes on, to the bit, as one that was only ever read so far; with coded
  // ones, as near as the codec is. What a selector learned of a prefill's queries
  // (SelectorFacts::watches) it no longer knows of segments that are cut; and what a method counts
  // that drops rows while it decodes (h2o), rows that stay keep of those that are cut. unsupported:
  // rows that the next query would need are gone (a sliding window's, or a method's that drops
  // rows).
  // exhausted: what is left of cut segments is formed anew in all layers before the old ones go,
  // and the plan does not count both; 0 takes no room. On any error the timeline stays as it was.
  Status truncate(std::uint32_t length);
  KvCache* cache() const { return cache_; }

 private:
  friend class KvCache;
  Timeline(KvCache* cache, TimelineId id) : cache_(cache), id_(id) {}
  KvCache* cache_ = nullptr;
  TimelineId id_{};
};

class KvCache {
 public:
  // With threads (0: all) and an instruction set ("auto") of its own; Engine::open_cache() makes
  // one that shares the engine's.
  static Result<std::unique_ptr<KvCache>> create(const CacheOptions& options, int threads,
                                                 const std::string& isa);
  // What create() and its timelines would take, by tier and purpose, and its notes(), without
  // taking it.
  static Result<MemoryPlan> plan(const CacheOptions& options, int threads = 0) {
    return plan(options, threads, nullptr);
  }
  ~KvCache();

  Result<Timeline> start();

  // The rows of a step: at each timeline's end, one position after the other.
  Status begin(std::span<const Token> rows, Pass pass);
  // keys [rows][kv_heads * key_dim], values [rows][kv_heads * value_dim] of this step's rows.
  Status append(LayerId layer, MatView<const float> keys, MatView<const float> values);
  // queries [rows][q_heads * key_dim] -> out [rows][q_heads * value_dim]. After append().
  // cancelled: `stop` said yes, which a prefill asks every few milliseconds and a decode never.
  Status attend(LayerId layer, MatView<const float> queries, MatView<float> out,
                const StopAsked& stop = {});
  // Of a decode step's layer for which stays_there() says so, in place of both: of rows that are on
  // the device, where they are turned, kept and attended. Only queues: what attention gives is
  // there for whatever is queued next, and the host has the rows after commit(). An error of what
  // was queued is that of whoever waits for it. All such layers of a step go by one queue, which
  // outlives the cache. A layer that is observed does not stay.
  bool stays_there(LayerId layer) const;
  Status attend_there(LayerId layer, const RowsThere& rows);
  // After every layer's attend(). On any other error than invalid_argument the step is rolled back.
  Status commit();
  void rollback();  // without a step: nothing

  // Fills `into`, an empty timeline of this cache, with all of `from`, of another cache of the same
  // layers: as if this one had read it, but for what the other's codec has rounded. cancelled:
  // `stop` said yes, which is asked between segments. unsupported: the other has dropped rows, or
  // this one's method has to see the text being read (watched_by()). On any error `into` stays
  // empty. Memory for it is in the other's plan if that has no course, or one that says so
  // (Course::is_copied).
  Status copy(const Timeline& from, const Timeline& into, const StopAsked& stop = {});

  // What a session of these options is compared by: the caller's facts and the cache's own.
  static Result<std::vector<SessionFact>> session_facts(const CacheOptions& options);
  // Sessions: CacheOptions::session names a file. What is saved there, until it is resumed; null:
  // nothing.
  const SessionText* saved() const;
  // That timeline, to the bit as it was when it was saved. On an error nothing of it is there, and
  // the file is as it was.
  Result<Timeline> resume();
  // From now on the file holds this timeline and text, and not what it held: all at once, whatever
  // happens meanwhile. Sealed rows are there already, so what is written is the tail and the text.
  // Not in the middle of a step. On an error the file holds what it held; or, where the last write
  // of all failed, this or that, whole, which nobody knows before it is opened again: later saves
  // say so and are refused.
  Status save(const Timeline& timeline, const SessionText& text);

  // Committed rows from position `first` on, as steps read them: keys [rows][kv_heads * key_dim],
  // rotated, and values [rows][kv_heads * value_dim]. unsupported: some are kept no more.
  Status read(const Timeline& timeline, LayerId layer, std::uint32_t first, MatView<float> keys,
              MatView<float> values);
  // From now on the file stays as it was saved last: what is sealed takes space on the same disk
  // that is gone with the process, and save() is refused. What is saved has been resumed, if there
  // is anything. On an error the session goes on.
  Status leave_session();
  // Is told what every decode step attends from now on; null: nobody. Borrowed.
  void observe(AttendObserver* observer);

  std::span<const LayerSpec> layers() const;
  std::uint32_t max_positions() const;  // that a timeline can have
  CacheReport report() const;
  MemoryPlan usage() const;
  // Of each layer and side whose codec has a basis and that has sealed rows, in a timeline of this
  // cache; of another nothing.
  std::vector<RankReport> ranks(const Timeline& timeline) const;
  std::optional<DiskReadCost> disk_read_cost() const;  // nothing: no rows are on a disk
  // One line each: what is slower or takes more memory than was asked for, and why.
  std::span<const std::string> notes() const;

 private:
  friend class Engine;
  friend class Timeline;
  struct Impl;
  // An engine's: `workers`, `cpu`, and the ledger of all of its caches are borrowed for the
  // cache's life.
  static Result<std::unique_ptr<KvCache>> create(const CacheOptions& options,
                                                 const Workers& workers, const CpuTable& cpu,
                                                 Budget* whole);
  static Result<MemoryPlan> plan(const CacheOptions& options, int threads, const Budget* whole);
  explicit KvCache(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace thermocline
