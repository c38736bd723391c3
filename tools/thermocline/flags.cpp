#include "tools/thermocline/flags.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <random>
#include <tuple>

#include "tools/thermocline/machine.h"
#include "tools/thermocline/size.h"
#include "tools/thermocline/suggestion.h"
#include "tools/thermocline/user_cache.h"

namespace thermocline {
namespace {

namespace po = boost::program_options;

constexpr std::uint32_t kMostContext = 1u << 30;

// $XDG_CACHE_HOME/thermocline/kv: on a disk, the user's own, not a shared /tmp. The library makes
// no more than a directory's last part; what this one lies in is made here.
Result<std::string> cache_directory() {
  const std::optional<std::string> cache = user_cache();
  if (!cache) return std::string("/var/tmp/thermocline-kv");
  std::string made = *cache;
  for (const char* part : {"", "/thermocline"}) {
    made += part;
    if (::mkdir(made.c_str(), 0700) != 0 && errno != EEXIST)
      return fail(ErrorCode::io, "the cache folder ", made,
                  " could not be made: ", std::strerror(errno),
                  ": name a folder on a disk with --kv-dir");
  }
  return made + "/kv";
}

std::string list(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

template <typename T>
po::typed_value<T>* value(T* into, const char* name) {
  return po::value<T>(into)->value_name(name);
}

void add_model_options(po::options_description* group, ModelFlags* flags, bool with_threads) {
  auto add = group->add_options();
  add("model,m", value(&flags->model, "FILE"), "the model, a GGUF file");
  if (with_threads)
    add("threads,t", value(&flags->threads, "N"), "threads; 0: as many as may be used (0)");
  add("ctx-size,c", value(&flags->context, "N"), "context in tokens; 0: the model's own (0)");
  const Version build = version();
  const std::string isas =
      "instruction set: auto, " + list(build.instruction_sets) +
      (build.bf16_prefill.empty() ? "" : "; a prefill is rounded to bf16 by ") +
      list(build.bf16_prefill) + " (auto)";
  add("isa", value(&flags->isa, "NAME"), isas.c_str());
  add("rope-scaling", value(&flags->rope_scaling, "KIND"),
      "stretch positions beyond the model's context: none, linear or yarn (the model's own)");
  add("rope-freq-scale", value(&flags->rope_freq_scale, "X"),
      "by this factor: 0.25 stretches the context four times; 0: the model's own (0)");
  add("rope-freq-base", value(&flags->rope_freq_base, "X"), "RoPE base; 0: the model's own (0)");
  add("batch-size,b", value(&flags->batch, "N"),
      "accepted, without effect: the prefill chooses its own, which no answer depends on");
  add("ubatch-size", value(&flags->ubatch, "N"), "accepted, without effect, as -b");
  add("gpu-layers", value(&flags->gpu_layers, "N"),
      "layers whose weights go to a GPU, which computes them: the last N; more than there are, or "
      "all: the logits too; 0 or auto: none (0)");
  add("main-gpu", value(&flags->main_gpu, "N"), "which GPU that is (0)");
  add("flash-attn", value(&flags->flash_attention, "on|off|auto"),
      "on or auto: attention is always computed in tiles");
}

constexpr const char *kKeysCompress = "keys.compress", *kValuesCompress = "values.compress";
constexpr const char *kKeysFlag = "-ctk", *kValuesFlag = "-ctv";
constexpr const char* kRawType = "f16";  // as llama.cpp calls what a method calls raw
constexpr const char* kFloatType = "f32";

std::vector<std::string> cache_types() {
  std::vector<std::string> types = {kFloatType};
  for (const CodecLine& codec : list_codecs())
    types.push_back(codec.name == "raw" ? kRawType : codec.name);
  return types;
}

// "0", "auto": none; "all".
Result<std::uint32_t> parse_layers(const std::string& text) {
  if (text == "auto") return 0;
  if (text == "all") return std::numeric_limits<std::uint32_t>::max();
  std::uint32_t layers = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), layers);
  if (error == std::errc() && end == text.data() + text.size()) return layers;
  return fail(ErrorCode::invalid_argument, "--gpu-layers '", text,
              "' is not a number of layers, all, or auto");
}

Status refuse_unless(bool accepted, const std::string& option, const std::string& given,
                     const std::string& why) {
  if (accepted) return {};
  return fail(ErrorCode::invalid_argument, option, " ", given, " is refused: ", why);
}

}  // namespace

void ModelFlags::add_to(CommandLine* line) {
  add_model_options(&line->group("Model and machine"), this, true);
}

void ModelFlags::add_without_threads_to(CommandLine* line) {
  add_model_options(&line->group("Model and machine"), this, false);
}

Result<EngineOptions> ModelFlags::engine_options() const {
  if (model.empty()) return fail(ErrorCode::invalid_argument, "no model: say -m FILE.gguf");
  TL_TRY(refuse_unless(flash_attention == "on" || flash_attention == "auto", "--flash-attn",
                       flash_attention, "attention is always computed in tiles; leave it out"));
  if (threads < 0 || threads > 4096)
    return fail(ErrorCode::invalid_argument, "--threads ", threads,
                " is not a number of threads: 0 takes as many as may be used");
  if (context > kMostContext)
    return fail(ErrorCode::invalid_argument, "--ctx-size must be at most ", kMostContext);
  const bool sane_scale = rope_freq_scale >= 0 && rope_freq_scale <= 1;
  if (!sane_scale)
    return fail(ErrorCode::invalid_argument, "--rope-freq-scale ", rope_freq_scale,
                " is not between 0 and 1: 0.25 stretches the context four times, 0 is the "
                "model's own");
  if (!(rope_freq_base >= 0) || !std::isfinite(rope_freq_base))
    return fail(ErrorCode::invalid_argument,
                "--rope-freq-base must be above 0, or 0 for the model's own");
  EngineOptions options;
  options.model_path = model;
  options.threads = threads;
  options.isa = isa;
  TL_TRY_ASSIGN(options.device_layers, parse_layers(gpu_layers));
  TL_TRY(refuse_unless(main_gpu <= 1023, "--main-gpu", std::to_string(main_gpu), "say 0 to 1023"));
  options.device = "cuda:" + std::to_string(main_gpu);
  options.rope_freq_scale = rope_freq_scale;
  options.rope_freq_base = rope_freq_base;
  if (rope_scaling == "none")
    options.rope_scaling = RopeScaling::none;
  else if (rope_scaling == "linear")
    options.rope_scaling = RopeScaling::linear;
  else if (rope_scaling == "yarn")
    options.rope_scaling = RopeScaling::yarn;
  else if (rope_scaling != "model")
    return fail(ErrorCode::invalid_argument, "--rope-scaling '", rope_scaling,
                "' is not known: none, linear or yarn");
  return options;
}

Result<std::unique_ptr<Engine>> ModelFlags::open() const {
  TL_TRY_ASSIGN(const EngineOptions options, engine_options());
  return Engine::open(options);
}

std::vector<std::string> ModelFlags::notes() const {
  std::vector<std::string> notes;
  if (batch != 0 || ubatch != 0)
    notes.emplace_back(
        "-b and -ub have no effect: the prefill chooses its own, which no answer depends on");
  if (const auto note = note_on_threads(threads)) notes.push_back(*note);
  return notes;
}

std::optional<std::string> note_on_threads(int threads) {
  const int usable = usable_threads();
  if (threads <= usable) return std::nullopt;
  return "--threads " + std::to_string(threads) + ": this process may run on " +
         std::to_string(usable) + ", so " + std::to_string(usable) + " compute";
}

void TierFlags::add_without_budgets_to(po::options_description* group) {
  auto add = group->add_options();
  add("device", value(&device, "NAME"),
      "a GPU that keeps rows and attends them: cuda, cuda:N, or none; or host: host memory stands "
      "in for one (none)");
  add("kv-device", value(&device_size, "SIZE"),
      "memory of the device: the rows of as many layers as fit whole live there, one at least, and "
      "those of the others where they would without it; a size, or auto: what is free there (0)");
  const auto named = [](const std::string& given) {
    if (given.empty()) throw po::error("--kv-dir '' names no folder");
  };
  add("kv-dir", value(&directory, "DIR")->notifier(named),
      "where the scratch file of --kv-disk lives: a folder on the disk to use, not a tmpfs, made "
      "if only it is missing (the user's cache folder)");
  const std::string backends =
      "how the disk is read: auto, " + list(version().io_backends) + " (auto)";
  add("io-backend", value(&io_backend, "NAME"), backends.c_str());
  add("no-kv-offload", po::bool_switch(&no_offload), "accepted: the cache is in host memory");
}

void TierFlags::add_to(CommandLine* line) {
  po::options_description& group = line->group("Tiers of the KV cache");
  group.add_options()(
      "kv-host", value(&host, "SIZE"),
      "host memory for KV and its index: 512MiB, 2G or auto (auto: what is free); with "
      "--kv-disk for the index, the tail and copies of rows (auto: at most what all of it would "
      "take without a disk)");
  group.add_options()(
      "kv-disk", value(&disk, "SIZE"),
      "disk for the rows, all but the newest, which then live there: a size, auto, or 0 "
      "for none (0)");
  add_without_budgets_to(&group);
}

std::vector<std::string> TierFlags::notes(const std::string& session) const {
  std::vector<std::string> notes;
  if (!session.empty()) {
    if (!directory.empty()) notes.emplace_back("--kv-dir has no effect with --session");
    return notes;
  }
  if (parse_size(disk, "--kv-disk").value_or(0) > 0) return notes;
  if (!directory.empty()) notes.emplace_back("--kv-dir has no effect without --kv-disk");
  if (io_backend != "auto") notes.emplace_back("--io-backend has no effect without --kv-disk");
  return notes;
}

Result<TierOptions> TierFlags::tier_options() const {
  const std::vector<std::string> backends = version().io_backends;
  if (io_backend != "auto" && std::count(backends.begin(), backends.end(), io_backend) == 0)
    return fail(ErrorCode::invalid_argument, "--io-backend '", io_backend, "' is not known",
                suggestion(io_backend, backends), " (known: auto, ", list(backends), ")");
  TierOptions options;
  TL_TRY_ASSIGN(options.device_bytes, parse_size(device_size, "--kv-device"));
  if (options.device_bytes == kAutoBytes && device == "none") options.device_bytes = 0;
  options.device = device;
  TL_TRY(check_device(options));
  TL_TRY_ASSIGN(options.host_bytes, parse_size(host, "--kv-host"));
  TL_TRY_ASSIGN(options.disk_bytes, parse_size(disk, "--kv-disk"));
  options.directory = directory;
  if (directory.empty() && options.disk_bytes > 0) {
    TL_TRY_ASSIGN(options.directory, cache_directory());
  }
  options.io_backend = io_backend;
  return options;
}

void MethodFlags::add_without_method_to(po::options_description* group) {
  auto add = group->add_options();
  add("method-set", value(&settings, "NAME=VALUE"),
      "over the method's file, as in select.share=0.05; may be repeated");
  const std::string types =
      "how sealed keys are held, over the method's file: " + list(cache_types()) +
      "; f32 is taken as f16, and 'thermocline methods' says what each is";
  add("cache-type-k", value(&keys_type, "TYPE"), types.c_str());
  add("cache-type-v", value(&values_type, "TYPE"), "the same of values");
  add("method-dir", value(&directory, "DIR"), "where methods are looked up (the installed ones)");
}

void MethodFlags::add_to(CommandLine* line) {
  po::options_description& group = line->group("Method");
  group.add_options()("method", value(&method, "NAME|FILE"),
                      "how the cache is kept and read: exact, streaming, sketch ...; 'thermocline "
                      "methods' lists them (exact)");
  add_without_method_to(&group);
}

Status MethodFlags::check_type(const char* flag, const std::string& type,
                               const std::string& key) const {
  if (type.empty()) return {};
  const std::vector<std::string> known = cache_types();
  if (std::count(known.begin(), known.end(), type) == 0)
    return fail(ErrorCode::invalid_argument, flag, " '", type, "' is not known",
                suggestion(type, known), " (known: ", list(known), ")");
  for (const std::string& setting : settings)
    if (setting.starts_with(key + "="))
      return fail(ErrorCode::invalid_argument, flag, " ", type, " and --method-set ", setting,
                  " say the same thing twice: leave one of them out");
  return {};
}

std::vector<std::string> MethodFlags::overrides() const {
  std::vector<std::string> all;
  const auto add = [&](const std::string& key, const std::string& type) {
    const bool is_raw = type == kRawType || type == kFloatType;
    if (!type.empty()) all.push_back(key + "=" + (is_raw ? "raw" : type));
  };
  add(kKeysCompress, keys_type);
  add(kValuesCompress, values_type);
  all.insert(all.end(), settings.begin(), settings.end());
  return all;
}

std::vector<std::string> MethodFlags::notes() const {
  std::vector<std::string> notes;
  for (const auto& [flag, type] :
       {std::pair(kKeysFlag, keys_type), std::pair(kValuesFlag, values_type)})
    if (type == kFloatType)
      notes.push_back(std::string(flag) + " " + type + " is taken as " + kRawType +
                      ": keys and values are rounded to it as they are appended");
  return notes;
}

Status MethodFlags::check(const std::string& name, std::span<const std::string> more) const {
  TL_TRY(check_type(kKeysFlag, keys_type, kKeysCompress));
  TL_TRY(check_type(kValuesFlag, values_type, kValuesCompress));
  TL_TRY(check_name(name));
  std::vector<std::string> all = overrides();
  all.insert(all.end(), more.begin(), more.end());
  const std::string folder = method_directory(directory);
  const Status made = check_method(name, folder, all);
  if (made) return {};
  // A message of the library's names what the flag stands for.
  std::string flags;
  for (const auto& [flag, type, key] : {std::tuple(kKeysFlag, keys_type, kKeysCompress),
                                        std::tuple(kValuesFlag, values_type, kValuesCompress)})
    if (!type.empty() && made.error().message.find(key) != std::string::npos)
      flags += std::string(flag) + " " + type + " (" + key + "): ";
  const bool was_whole = !all.empty() && check_method(name, folder, {});
  return fail(was_whole ? ErrorCode::invalid_argument : made.error().code, flags,
              made.error().message);
}

Status MethodFlags::check_name(const std::string& name) const {
  const auto refuse = [&](const auto&... what) {
    return fail(ErrorCode::invalid_argument, "--method '", name, "'", what...);
  };
  std::error_code ignored;
  if (name.find('/') != std::string::npos || name.ends_with(".conf")) {
    if (std::filesystem::is_directory(name, ignored))
      return refuse(" is a directory: name a file in it, or give it with --method-dir");
    if (!std::filesystem::exists(name, ignored)) return refuse(": there is no such file");
    return {};
  }
  TL_TRY(check_method_directory(directory));
  const std::string folder = method_directory(directory);
  const Result<std::vector<MethodLine>> lines = list_methods(folder);
  if (!lines) {
    // Another one may be broken, or there may be none at all: said where this one is opened.
    if (directory.empty() || std::filesystem::exists(folder + "/" + name + ".conf", ignored))
      return {};
    return refuse(": there is no ", name, ".conf in --method-dir '", folder, "'");
  }
  std::vector<std::string> known;
  for (const MethodLine& line : *lines) known.push_back(line.name);
  if (std::count(known.begin(), known.end(), name) > 0) return {};
  return refuse(" is not known", suggestion(name, known), " (known: ", list(known), ")");
}

Status check_method_directory(const std::string& given) {
  std::error_code ignored;
  if (given.empty() || std::filesystem::is_directory(given, ignored)) return {};
  return fail(ErrorCode::invalid_argument, "--method-dir '", given,
              "' is not a folder: name the one that holds exact.conf");
}

CacheOptions MethodFlags::cache_options() const {
  CacheOptions options;
  options.method = method;
  options.method_directory = method_directory(directory);
  options.method_overrides = overrides();
  return options;
}

void SamplingFlags::add_to(CommandLine* line) {
  auto add = line->group("Sampling").add_options();
  add("predict,n", value(&length, "N"), "tokens to generate; -1: until the text ends (-1)");
  add("seed,s", value(&seed, "N"), "seed of the sampler; -1: another one each time (-1)");
  add("temp", value(&options.temperature, "X"), "temperature; 0: always the likeliest (0.8)");
  add("top-k", value(&options.top_k, "N"), "among the N likeliest; 0: all (40)");
  add("top-p", value(&options.top_p, "X"), "among those that make up this probability (0.95)");
  add("min-p", value(&options.min_p, "X"), "among those this likely beside the likeliest (0.05)");
  add("repeat-penalty", value(&options.repeat_penalty, "X"), "of recent tokens; 1: none (1)");
  add("repeat-last-n", value(&options.repeat_last_n, "N"), "how many are recent; -1: all (64)");
  add("ignore-eos", po::bool_switch(&ignore_end), "go on when the model would end its text");
  add("stop", value(&stops, "TEXT"), "end before this text; may be repeated");
}

bool SamplingFlags::given(const CommandLine& line) {
  for (const char* name : {"temp", "top-k", "top-p", "min-p", "repeat-penalty", "repeat-last-n"})
    if (line.given(name)) return true;
  return false;
}

std::vector<std::string> SamplingFlags::notes(const CommandLine& line) const {
  std::string idle;
  if (options.temperature == 0)
    for (const char* name : {"seed", "top-k", "top-p", "min-p"})
      if (line.given(name)) idle += std::string(idle.empty() ? "--" : ", --") + name;
  std::vector<std::string> notes;
  if (!idle.empty())
    notes.push_back("no effect at --temp 0, which takes the likeliest token: " + idle);
  if (line.given("repeat-last-n") && options.repeat_penalty == 1)
    notes.emplace_back("--repeat-last-n has no effect without --repeat-penalty");
  return notes;
}

Result<SamplingOptions> SamplingFlags::sampling_options() const {
  SamplingOptions chosen = options;
  const auto within = [](float x, float low, float high) { return x >= low && x <= high; };
  if (!within(chosen.temperature, 0, 1000))
    return fail(ErrorCode::invalid_argument, "--temp must be between 0 and 1000");
  if (!within(chosen.top_p, 0, 1) || !within(chosen.min_p, 0, 1))
    return fail(ErrorCode::invalid_argument, "--top-p and --min-p are between 0 and 1");
  if (chosen.top_k < 0) return fail(ErrorCode::invalid_argument, "--top-k must be 0 or more");
  if (!within(chosen.repeat_penalty, 1e-3f, 1e3f))
    return fail(ErrorCode::invalid_argument, "--repeat-penalty must be above 0, 1 for none");
  if (chosen.repeat_last_n < -1)
    return fail(ErrorCode::invalid_argument, "--repeat-last-n must be -1 or more");
  if (seed < -1) return fail(ErrorCode::invalid_argument, "--seed must be -1 or more");
  if (length < -1) return fail(ErrorCode::invalid_argument, "--predict must be -1 or more");
  for (const std::string& stop : stops)
    if (stop.empty()) return fail(ErrorCode::invalid_argument, "--stop needs a text");
  chosen.seed = seed >= 0 ? static_cast<std::uint64_t>(seed) : std::random_device{}();
  return chosen;
}

void OutputFlags::add_to(CommandLine* line) {
  auto add = line->group("Output").add_options();
  add("json", value(&json, "FILE"),
      "write the statistics there as JSON, at the end: what lies there is replaced then; -: to "
      "stdout");
  add("progress", value(&progress, "STYLE"), "bar, json, none or auto: a bar on a terminal (auto)");
  add("quiet", po::bool_switch(&quiet), "no statistics and no notes on stderr");
  add("verbose,v", po::bool_switch(&verbose), "memory by purpose, and more counters");
}

Status write_to_stdout(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0)
    return {};
  return fail(ErrorCode::io, "stdout: ", std::strerror(errno));
}

std::string method_directory(const std::string& given) {
  if (!given.empty()) return given;
  if (const char* set = std::getenv("THERMOCLINE_METHODS"); set && *set) return set;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return {};
  const std::filesystem::path beside =
      program.parent_path().parent_path() / "share" / "thermocline" / "methods";
  return std::filesystem::is_directory(beside, error) ? beside.string() : std::string();
}

}  // namespace thermocline
