#include <algorithm>
#include <optional>
#include <string>

#include "kernels/base/workers.h"
#include "kernels/cpu/table.h"
#include "kernels/gemm.h"
#include "runtime/layers_on_device.h"
#include "runtime/memory_usage.h"
#include "runtime/model/chat_template.h"
#include "runtime/model/fingerprint.h"
#include "runtime/model/gguf.h"
#include "runtime/model/layer.h"
#include "runtime/model/model.h"
#include "runtime/model/query_powers.h"
#include "runtime/model/tokenizer.h"
#include "runtime/model/weights.h"
#include "runtime/prefill.h"
#include "runtime/step.h"
#include "runtime/text_cuts.h"
#include "runtime/thermocline.h"

namespace thermocline {
namespace {

// What the whole engine reads and nobody changes, in the order in which it is read.
struct OpenModel {
  GgufFile file;
  ModelSpec spec;
  Tokenizer tokenizer;
  Weights weights;

  static Result<OpenModel> open(const EngineOptions& options);
};

Result<OpenModel> OpenModel::open(const EngineOptions& options) {
  TL_TRY_ASSIGN(GgufFile file, GgufFile::open(options.model_path));
  TL_TRY_ASSIGN(ModelSpec spec, ModelSpec::read(file, options));
  TL_TRY_ASSIGN(Weights weights, Weights::read(file, spec));
  for (std::size_t l = 0; l < spec.layers.size(); ++l)
    spec.layers[l].query_powers = query_powers(spec.layers[l], weights.layers[l].q_norm);
  TL_TRY_ASSIGN(Tokenizer tokenizer, Tokenizer::create(file));
  if (tokenizer.size() != weights.vocabulary())
    return fail(ErrorCode::corrupt, file.name(), ": the tokenizer has ", tokenizer.size(),
                " tokens, tensor token_embd.weight has ", weights.vocabulary());
  return OpenModel{std::move(file), std::move(spec), std::move(tokenizer), std::move(weights)};
}

// Rows that a device computes at a time.
constexpr std::size_t kDeviceRows = std::max<std::size_t>(kChunkPositions, kMaxStepRows);

ModelInfo describe(const OpenModel& model) {
  ModelInfo info;
  info.path = model.file.name();
  info.architecture = model.spec.architecture->name;
  info.name = model.spec.name;
  info.weight_types = model.weights.types;
  info.parameters = model.weights.parameters;
  info.weight_bytes = model.weights.bytes;
  info.layers = static_cast<std::uint32_t>(model.spec.layers.size());
  info.vocabulary = static_cast<std::uint32_t>(model.weights.vocabulary());
  info.context = model.spec.context;
  info.kv_bytes_per_token = model.spec.kv_bytes_per_token();
  info.has_chat_template = model.file.has("tokenizer.chat_template");
  return info;
}

class EngineTextStream final : public TextStream {
 public:
  explicit EngineTextStream(const Tokenizer& tokenizer)
      : detokenizer_(tokenizer, Detokenizer::At::middle) {}
  std::string feed(int token) override { return detokenizer_.push(token); }
  std::string flush() override { return detokenizer_.flush(); }

 private:
  Detokenizer detokenizer_;
};

}  // namespace

struct Engine::Impl {
  Impl(OpenModel open, const EngineOptions& options, const CpuTable& table)
      : model(std::move(open)),
        info(describe(model)),
        workers(options.threads),
        cpu(table),
        caches(
            {options.limits.device_bytes, options.limits.host_bytes, options.limits.disk_bytes}) {}

  Model view() const {
    Model view = {&model.spec, &model.weights, {&workers, &cpu}};
    if (on_device) {
      view.device = &on_device->layers();
      view.first_on_device = on_device->first();
      view.head_on_device = on_device->has_head();
    }
    return view;
  }

  // What a cache is to know of the model.
  void shape_for(CacheOptions* options) const;  // what a plan depends on
  // Of the rows on their way through the layers: what steps and a prefill take.
  std::uint64_t activation_bytes(const CacheOptions& options) const;
  void add_lines(std::uint64_t activations, MemoryPlan* plan) const;
  void describe_to(CacheOptions* options) const;
  static Status check_timeline(const Timeline* timeline, const KvCache* cache);
  Status check_layers(const KvCache& cache) const;
  Status check_tokens(std::span<const int> tokens) const;
  // Fills `at` and `tokens` from the rows of a step.
  Status place(std::span<const Feed> rows);

  const OpenModel model;
  ModelInfo info;
  const Workers workers;
  const CpuTable& cpu;
  Budget caches;
  RowState rows;  // of a step
  LayerScratch scratch;
  std::vector<Token> at;
  std::vector<int> tokens;
  PrefillMemory prefill;
  std::optional<LayersOnDevice> on_device;  // which may still read the rows above
};

void Engine::Impl::shape_for(CacheOptions* options) const {
  options->layers = model.spec.layers;
  if (options->max_positions == 0) options->max_positions = info.context;
  options->session.text_bytes += model.weights.vocabulary() * sizeof(float);  // logits
  options->beside_bytes += activation_bytes(*options);
  if (on_device)
    options->layers_there = LayersThere{on_device->device_number(), index(on_device->first())};
}

std::uint64_t Engine::Impl::activation_bytes(const CacheOptions& options) const {
  return rows.bytes() + scratch.bytes() +
         PrefillMemory::bytes_for(view(), longest_of(read_spans(options)));
}

// What the engine takes beside a cache. Layers that a device has are read from the file no more.
void Engine::Impl::add_lines(std::uint64_t activations, MemoryPlan* plan) const {
  const auto add = [&](std::string tier, Purpose purpose, std::uint64_t bytes) {
    plan->peak_bytes[tier] += bytes;
    plan->lines.push_back({std::move(tier), std::string(name_of(purpose)), bytes, bytes});
  };
  add(kWorkspace, Purpose::activations, activations);
  add(kMapped, Purpose::weights, info.weight_bytes - (on_device ? on_device->file_bytes() : 0));
  if (!on_device) return;
  const std::string device(name_of(Tier::device));
  add(device, Purpose::weights, on_device->weight_bytes());
  add(device, Purpose::activations, on_device->activation_bytes());
}

void Engine::Impl::describe_to(CacheOptions* options) const {
  shape_for(options);
  options->session.facts.push_back({"model", model_fingerprint(model.file)});
  options->session.facts.push_back({"tokenizer", tokenizer_fingerprint(model.file)});
}

Status Engine::Impl::check_timeline(const Timeline* timeline, const KvCache* cache) {
  if (!timeline || !timeline->cache())
    return fail(ErrorCode::invalid_argument, "a row without a timeline");
  if (timeline->cache() != cache)
    return fail(ErrorCode::invalid_argument, "the rows of a step belong to different caches");
  return {};
}

Status Engine::Impl::check_layers(const KvCache& cache) const {
  const auto layers = cache.layers();
  if (!std::equal(layers.begin(), layers.end(), model.spec.layers.begin(), model.spec.layers.end()))
    return fail(ErrorCode::invalid_argument,
                "the cache is not of this model, or of other positions (RoPE, scale, windows): use "
                "open_cache()");
  return {};
}

Status Engine::Impl::check_tokens(std::span<const int> of) const {
  for (const int token : of)
    if (token < 0 || static_cast<std::size_t>(token) >= model.weights.vocabulary())
      return fail(ErrorCode::invalid_argument, "token ", token, " is outside the vocabulary of ",
                  model.weights.vocabulary());
  return {};
}

Status Engine::Impl::place(std::span<const Feed> feeds) {
  if (feeds.empty() || feeds.size() > kMaxStepRows)
    return fail(ErrorCode::invalid_argument, "a step of ", feeds.size(), " rows, it takes 1 to ",
                kMaxStepRows);
  at.clear();
  tokens.clear();
  const KvCache* cache = feeds[0].timeline ? feeds[0].timeline->cache() : nullptr;
  for (const Feed& feed : feeds) {
    TL_TRY(check_timeline(feed.timeline, cache));
    const auto before = std::count_if(
        at.begin(), at.end(), [&](const Token& t) { return t.timeline == feed.timeline->id(); });
    at.push_back(
        {feed.timeline->id(), feed.timeline->length() + static_cast<std::uint32_t>(before)});
    tokens.push_back(feed.token);
  }
  TL_TRY(check_layers(*cache));
  return check_tokens(tokens);
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::open(const EngineOptions& options) {
  TL_TRY_ASSIGN(const CpuTable* cpu, choose_cpu_table(options.isa));
  if (options.isa != "auto") TL_TRY(bind_gemm(cpu->name));
  TL_TRY_ASSIGN(std::unique_ptr<Device> device, open_layers_device(options));
  TL_TRY_ASSIGN(OpenModel model, OpenModel::open(options));
  auto impl = std::make_unique<Impl>(std::move(model), options, *cpu);
  TL_TRY_ASSIGN(impl->rows, RowState::create(impl->model.spec, kMaxStepRows));
  TL_TRY_ASSIGN(impl->scratch, LayerScratch::create(impl->view(), kMaxStepRows));
  if (device) {
    TL_TRY_ASSIGN(impl->on_device,
                  LayersOnDevice::create(std::move(device), impl->model.spec, impl->model.weights,
                                         options.device_layers, kDeviceRows, &impl->caches));
    impl->info.device_layers = impl->info.layers - index(impl->on_device->first());
    impl->info.device_head = impl->on_device->has_head();
    impl->info.device = impl->on_device->device();
  }
  impl->at.reserve(kMaxStepRows);
  impl->tokens.reserve(kMaxStepRows);
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

const ModelInfo& Engine::model() const { return impl_->info; }
std::span<const LayerSpec> Engine::layers() const { return impl_->model.spec.layers; }

Result<std::vector<int>> Engine::encode(std::string_view text, Special special, Start start,
                                        const StopAsked& stop, std::size_t* left_out) const {
  return impl_->model.tokenizer.encode(
      text, special == Special::parse ? ParseSpecial::yes : ParseSpecial::no,
      start == Start::add ? AddSpecial::yes : AddSpecial::no, stop, left_out);
}

Result<std::string> Engine::decode(std::span<const int> tokens) const {
  return impl_->model.tokenizer.decode(tokens);
}

std::unique_ptr<TextStream> Engine::stream() const {
  return std::make_unique<EngineTextStream>(impl_->model.tokenizer);
}

bool Engine::ends_generation(int token) const {
  return impl_->model.tokenizer.contains(token) && impl_->model.tokenizer.is_end(token);
}

Result<std::vector<int>> Engine::encode_chat(std::span<const ChatMessage> messages,
                                             const std::string& template_name, Start reply,
                                             const StopAsked& stop, std::size_t* left_out) const {
  TL_TRY_ASSIGN(const ChatTemplate chat, template_name == "auto"
                                             ? ChatTemplate::recognise(impl_->model.file)
                                             : ChatTemplate::named(template_name));
  if (template_name != "auto") TL_TRY(chat.check_markers(impl_->model.tokenizer));
  TL_TRY_ASSIGN(
      const std::vector<TextPiece> pieces,
      chat.render(messages, reply == Start::add ? GenerationPrompt::yes : GenerationPrompt::no));
  return impl_->model.tokenizer.encode(pieces, AddSpecial::yes, stop, left_out);
}

Result<std::unique_ptr<KvCache>> Engine::open_cache(CacheOptions options) const {
  impl_->describe_to(&options);
  return KvCache::create(options, impl_->workers, impl_->cpu, &impl_->caches);
}

Result<std::vector<SessionFact>> Engine::session_facts(CacheOptions options) const {
  impl_->describe_to(&options);
  return KvCache::session_facts(options);
}

Result<MemoryPlan> Engine::plan(CacheOptions options) const {
  impl_->shape_for(&options);
  TL_TRY_ASSIGN(MemoryPlan plan, KvCache::plan(options, impl_->workers.threads(), &impl_->caches));
  impl_->add_lines(impl_->activation_bytes(options), &plan);
  return plan;
}

MemoryPlan Engine::usage(const KvCache& cache) const {
  MemoryPlan usage = cache.usage();
  impl_->add_lines(impl_->rows.bytes() + impl_->scratch.bytes() + impl_->prefill.bytes(), &usage);
  return usage;
}

MemoryPlan Engine::usage() const { return usage_of(impl_->caches); }

Status Engine::prefill(Timeline& timeline, std::span<const int> tokens, std::span<float> logits,
                       const PrefillOptions& options) {
  TL_TRY(impl_->check_timeline(&timeline, timeline.cache()));
  TL_TRY(impl_->check_layers(*timeline.cache()));
  TL_TRY(impl_->check_tokens(tokens));
  if (tokens.empty()) return fail(ErrorCode::invalid_argument, "prefill of no tokens");
  const std::size_t room = timeline.cache()->max_positions() - timeline.length();
  if (tokens.size() > room)
    return fail(ErrorCode::exhausted, "prefill of ", tokens.size(), " tokens where ", room, " of ",
                timeline.cache()->max_positions(), " positions are free: raise -c");
  if (!logits.empty() && logits.size() != impl_->model.weights.vocabulary())
    return fail(ErrorCode::invalid_argument, "room for ", logits.size(),
                " logits, the vocabulary has ", impl_->model.weights.vocabulary());
  return thermocline::prefill(impl_->view(), timeline, tokens, logits, options, &impl_->prefill);
}

std::uint64_t Engine::graph_replays() const {
  return impl_->on_device ? impl_->on_device->layers().replays() : 0;
}

Status Engine::step(std::span<const Feed> rows, MatView<float> logits) {
  TL_TRY(impl_->place(rows));
  if (logits.rows() != rows.size() || logits.cols() != impl_->model.weights.vocabulary())
    return fail(ErrorCode::invalid_argument, "room for ", logits.rows(), " x ", logits.cols(),
                " logits, the step gives ", rows.size(), " x ", impl_->model.weights.vocabulary());
  const Workers::Attention attention(impl_->workers);  // a step is hundreds of short loops
  return thermocline::step(impl_->view(), *rows[0].timeline->cache(), impl_->at, impl_->tokens,
                           impl_->rows, &impl_->scratch, logits);
}

}  // namespace thermocline
