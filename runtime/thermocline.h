// The library's whole face. An Engine is a model on this machine; a KvCache (runtime/kv_cache.h)
// holds timelines under a method; the engine moves timelines forward:
//
//   auto engine = Engine::open({.model_path = "model.gguf"});
//   auto cache = (*engine)->open_cache({.method = "sketch"});
//   auto timeline = (*cache)->start();
//   (*engine)->prefill(*timeline, tokens, logits, {});
//   const Feed feed{&*timeline, token};
//   (*engine)->step({&feed, 1}, {logits.data(), 1, logits.size()});
//
// Nothing here prints, exits or installs signal handlers. An Engine must outlive the caches and the
// text streams that it made. It and its caches share their threads: one thread drives them all;
// different engines are independent.
//
// Where memory that was planned runs out, a call returns `exhausted`. What is not planned is small
// things in passing: where the system has no memory even for those, std::bad_alloc leaves the call,
// and no timeline has changed; or, on one of the threads that compute, it ends the process
// (std::terminate).
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/view.h"
#include "runtime/chat_message.h"
#include "runtime/kv_cache.h"
#include "runtime/observer.h"
#include "runtime/sampler.h"
#include "runtime/stop_asked.h"

namespace thermocline {

struct Version {
  std::string number, commit, compiler, build;  // "0.1.0", "1a2b3c4", "g++ 12.2.0", "Release"
  std::vector<std::string> instruction_sets;    // built in; the usable ones of this machine
  std::vector<std::string> usable;              // are listed here
  std::vector<std::string> bf16_prefill;        // those of them that round a prefill to bf16
  std::vector<std::string> io_backends;         // built in, as auto tries them
  bool cuda = false;                            // kernels built
};
Version version();

// The machine as far as this process may use it, in a line: cores, NUMA nodes, memory, caches.
Result<std::string> describe_machine();
// Threads that 0 stands for, and the most that compute.
int usable_threads();
// Bytes a second that this many threads stream from memory: the best of a few passes over a buffer
// larger than any cache.
Result<double> measure_memory_bandwidth(int threads);

enum class RopeScaling { from_model, none, linear, yarn };

// What the caches of an engine may hold together in each tier. kAutoBytes: nothing but what each of
// them is given alone (CacheOptions::tiers) bounds it.
struct TierLimits {
  std::uint64_t device_bytes = kAutoBytes, host_bytes = kAutoBytes, disk_bytes = kAutoBytes;
};

struct EngineOptions {
  std::string model_path = {};
  int threads = 0;  // 0: as many as this process may run on
  // auto, or one of version().instruction_sets. A forced one is the process's: oneDNN has one for
  // all engines.
  std::string isa = "auto";
  RopeScaling rope_scaling = RopeScaling::from_model;
  float rope_freq_scale = 0;  // 0: the model's; 0.25 stretches the context four times (linear)
  float rope_freq_base = 0;   // 0: the model's
  TierLimits limits = {};
  // Layers whose dense work a device does, whole ones, from the last one down; of more than the
  // model has, all, and the logits. Their weights are copied there when the engine is opened, and
  // are of `limits`.
  // Logits are then that device's as to rounding: other bits than the host's.
  std::uint32_t device_layers = 0;
  std::string device = "cuda";  // which: cuda, the first one, or cuda:N
};

struct ModelInfo {
  std::string path, architecture, name, weight_types;  // "Q4_1 210, F32 61"
  std::uint64_t parameters = 0, weight_bytes = 0;
  std::uint32_t layers = 0, vocabulary = 0, context = 0;  // context: positions trained for, after
                                                          // any scaling asked for
  std::uint64_t kv_bytes_per_token = 0;                   // f16, full-attention layers
  bool has_chat_template = false;
  std::uint32_t device_layers = 0;  // of `layers`, the last ones, computed by
  bool device_head = false;         // and the logits
  std::string device;               // "cuda:0 (NVIDIA H200)"; "": by none
};

// What a model file says of itself, as text: whether or not it can be run.
struct ModelFile {
  std::string path, architecture, name;  // "" where it does not say
  std::uint32_t version = 0;             // of GGUF
  std::uint64_t bytes = 0;
  std::vector<std::pair<std::string, std::string>> metadata;  // {key, value}
  std::vector<std::pair<std::string, std::string>> tensors;   // {name, type and shape}
};
// Of any file whose header is sound.
Result<ModelFile> read_model_file(const std::string& path);

// Bytes to text as tokens arrive: never half a character.
class TextStream {
 public:
  virtual ~TextStream() = default;
  virtual std::string feed(int token) = 0;  // what can be printed now
  virtual std::string flush() = 0;          // what was held back
};

struct PrefillProgress {
  std::uint32_t done = 0, total = 0;  // token-layers, scaled to tokens
};
struct PrefillOptions {
  // Called now and then, by the caller's thread.
  std::function<void(const PrefillProgress&)> progress = {};
  // Stops within a few milliseconds of attention, or a chunk's products, with ErrorCode::cancelled;
  // nothing is committed of the current span.
  StopAsked stop = {};
  // The tokens, at most kSpanRows, are a text of their own (Pass::alone): texts are joined so into
  // one timeline, each as it would be read alone.
  bool alone = false;
  // When set, called with the logits [rows][vocabulary] of every position, a few rows at a time, in
  // order: for teacher-forced measurements.
  std::function<void(std::uint32_t first, MatView<const float> logits)> all_logits = {};
};

// One row of a step.
struct Feed {
  Timeline* timeline = nullptr;
  int token = 0;
};

class Engine {
 public:
  static Result<std::unique_ptr<Engine>> open(const EngineOptions& options);
  ~Engine();

  const ModelInfo& model() const;
  std::span<const LayerSpec> layers() const;

  // Text. `special`: whether "<|im_end|>" in the text means the token or its letters. `start`:
  // whether it has a prompt's first token (BOS, where the model wants one).
  // cancelled: `stop` said yes, which is asked all along. `left_out`: how many bytes of the text no
  // token stands for, or only the unknown one.
  enum class Special : std::uint8_t { parse, as_text };
  enum class Start : std::uint8_t { add, leave_out };
  Result<std::vector<int>> encode(std::string_view text, Special special, Start start,
                                  const StopAsked& stop = {},
                                  std::size_t* left_out = nullptr) const;
  // invalid_argument: a token that is not of the vocabulary.
  Result<std::string> decode(std::span<const int> tokens) const;
  std::unique_ptr<TextStream> stream() const;
  bool ends_generation(int token) const;
  // The conversation as the model's template (name "auto") or a named one writes it, from its first
  // token on, and where `reply` says so up to where a reply begins. What messages say is text,
  // whatever it spells: only the template ends turns.
  Result<std::vector<int>> encode_chat(std::span<const ChatMessage> messages,
                                       const std::string& template_name, Start reply,
                                       const StopAsked& stop = {},
                                       std::size_t* left_out = nullptr) const;

  // A cache for this model. options.layers is filled in; max_positions 0 means the model's context;
  // a session's facts name model and tokenizer. What its plan comes to is taken of the engine's
  // limits before any memory is, stays the cache's while that lives, and is then another's. Beyond
  // it, as far as options.tiers allow (Timeline::truncate may ask for more), a cache takes what is
  // free of them at the time. Where options.tiers say kAutoBytes a cache has what is free; one of
  // rows on a disk takes up to half of that to cache them. exhausted: it needs more than is left.
  Result<std::unique_ptr<KvCache>> open_cache(CacheOptions options) const;
  // What a session of open_cache() is compared by.
  Result<std::vector<SessionFact>> session_facts(CacheOptions options) const;
  // What open_cache() would take now, and the engine: usage() of a run that comes to it. The same
  // refusals.
  Result<MemoryPlan> plan(CacheOptions options) const;
  // What a cache of this engine holds, and beside it what the engine computes in, and the model.
  MemoryPlan usage(const KvCache& cache) const;
  // What is taken of the limits: by all of its caches together, their plans and what any holds
  // beyond its own; and by layers on a device.
  MemoryPlan usage() const;

  // Appends tokens to a timeline; logits [vocabulary] of the last one. On an error the timeline
  // holds the spans that were committed before it.
  Status prefill(Timeline& timeline, std::span<const int> tokens, std::span<float> logits,
                 const PrefillOptions& options);
  // One token for each of up to kMaxStepRows rows (several of one timeline follow each other);
  // logits [rows][vocabulary].
  Status step(std::span<const Feed> rows, MatView<float> logits);
  // With layers on a device: so many times it ran again, as one graph, what was queued before. In
  // decode that is a step, or what of it lies between two waits.
  std::uint64_t graph_replays() const;

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The methods that can be named, with a line each: configs/methods/*.conf.
struct MethodLine {
  std::string name, summary, path;
  // The three facts that decide how it composes: in which order rows are stored, what it watches of
  // a prefill, and whether its selector keeps a copy of every key in memory, wherever rows live.
  std::string order, watches;
  bool keys_in_memory = false;
};
Result<std::vector<MethodLine>> list_methods(const std::string& directory);
// What open_cache() would refuse of a method by itself: one that is not there, what its file or
// `overrides` say, choices that do not go together.
Status check_method(const std::string& name, const std::string& directory,
                    std::span<const std::string> overrides);
// What one must see of a prefill, as MethodLine::watches; empty: nothing. Others can take rows that
// another cache has read (KvCache::copy).
Result<std::string> watched_by(const std::string& name, const std::string& directory,
                               std::span<const std::string> overrides);

// What a method may name as keys.compress and values.compress, with a line each, and what more may
// be said of it: keys.rank, say, of one that has "rank".
struct CodecLine {
  std::string name, summary;
  std::vector<std::string> parameters;
};
std::vector<CodecLine> list_codecs();

}  // namespace thermocline
