// thermocline sweep: speed along contexts, methods and tier sizes, a row each.
#include <algorithm>
#include <array>
#include <cstdio>

#include "tools/thermocline/command.h"
#include "tools/thermocline/flags.h"
#include "tools/thermocline/interruption.h"
#include "tools/thermocline/machine.h"
#include "tools/thermocline/printable.h"
#include "tools/thermocline/prompt.h"
#include "tools/thermocline/range.h"
#include "tools/thermocline/size.h"
#include "tools/thermocline/speed_test.h"
#include "tools/thermocline/spread.h"
#include "tools/thermocline/statistics.h"
#include "tools/thermocline/table.h"

namespace thermocline {
namespace {

namespace po = boost::program_options;
using Json = nlohmann::ordered_json;
using Numbers = std::vector<std::uint32_t>;

struct SweepFlags {
  ModelFlags model;
  TierFlags tiers;
  MethodFlags method;
  std::string prompts = "512", generations = "128", depths = "0", threads = "0";
  std::string methods = "exact", hosts = "auto", disks = "0", parallel = "1";
  std::string text, format = "md", progress = "auto";
  std::uint32_t repeats = 5;
  bool no_warmup = false;
};

// The lists, parsed.
struct Plan {
  Numbers prompts, generations, depths, threads;  // the threads that compute
  std::vector<std::string> thread_notes;
  std::vector<std::string> methods, hosts, disks;
  Numbers parallel;  // kAsManyAsFit among them
  TableFormat format{};
  ProgressStyle progress{};
};

constexpr std::uint32_t kAsManyAsFit = 0;

Result<Numbers> parse_parallel(const std::string& text) {
  TL_TRY_ASSIGN(const std::vector<std::string> parts, parse_list(text, "--parallel"));
  Numbers counts;
  for (const std::string& part : parts) {
    if (part == "auto") {
      counts.push_back(kAsManyAsFit);
      continue;
    }
    TL_TRY_ASSIGN(const Numbers some, parse_range_list(part, "--parallel"));
    for (const std::uint32_t count : some)
      if (count == 0 || count > kMaxStepRows)
        return fail(ErrorCode::invalid_argument, "--parallel ", std::to_string(count),
                    ": a step has 1 to ", std::to_string(kMaxStepRows), " sequences; or say auto");
    counts.insert(counts.end(), some.begin(), some.end());
  }
  return counts;
}

// How many threads compute, in the order asked for and each once: more than may be used are those
// that may.
Numbers threads_that_compute(const Numbers& asked, std::vector<std::string>* notes) {
  const auto usable = static_cast<std::uint32_t>(usable_threads());
  Numbers counts;
  for (const std::uint32_t threads : asked) {
    const std::uint32_t count = threads > 0 ? std::min(threads, usable) : usable;
    const bool measured = std::find(counts.begin(), counts.end(), count) != counts.end();
    const auto fewer = note_on_threads(static_cast<int>(threads));
    if (measured)
      notes->push_back(fewer.value_or("--threads " + std::to_string(threads) + " is " +
                                      std::to_string(count) + " here") +
                       ", which is measured once");
    else if (fewer)
      notes->push_back(*fewer);
    if (!measured) counts.push_back(count);
  }
  return counts;
}

Result<Plan> parse_plan(const SweepFlags& flags) {
  Plan plan;
  TL_TRY_ASSIGN(plan.prompts, parse_range_list(flags.prompts, "--prompt-tokens"));
  TL_TRY_ASSIGN(plan.generations, parse_range_list(flags.generations, "--gen-tokens"));
  TL_TRY_ASSIGN(plan.depths, parse_range_list(flags.depths, "--depth"));
  TL_TRY_ASSIGN(const Numbers threads, parse_range_list(flags.threads, "--threads"));
  for (const std::uint32_t count : threads) {
    ModelFlags model = flags.model;
    model.threads = static_cast<int>(count);
    TL_TRY(model.engine_options());
  }
  plan.threads = threads_that_compute(threads, &plan.thread_notes);
  TL_TRY_ASSIGN(plan.methods, parse_list(flags.methods, "--method"));
  for (const std::string& method : plan.methods) TL_TRY(flags.method.check(method));
  TL_TRY_ASSIGN(plan.hosts, parse_list(flags.hosts, "--kv-host"));
  TL_TRY_ASSIGN(plan.disks, parse_list(flags.disks, "--kv-disk"));
  TL_TRY_ASSIGN(plan.parallel, parse_parallel(flags.parallel));
  TL_TRY_ASSIGN(plan.format, parse_table_format(flags.format));
  TL_TRY_ASSIGN(plan.progress, parse_progress_style(flags.progress));
  if (flags.repeats == 0 || flags.repeats > 1000)
    return fail(ErrorCode::invalid_argument, "--repetitions must be between 1 and 1000");
  return plan;
}

// The tests of a plan; a 0 in -p or -n means none of that kind, as in llama-bench.
std::vector<SpeedTest> tests_of(const Plan& plan) {
  std::vector<SpeedTest> tests;
  for (const std::uint32_t p : plan.prompts)
    if (p > 0) tests.push_back({p, 0});
  for (const std::uint32_t n : plan.generations)
    if (n > 0) tests.push_back({0, n});
  return tests;
}

// Tokens to fill contexts with: the text's, over again where it is too short; without one, a fixed
// mix of the vocabulary.
Result<std::vector<int>> filling(const Engine& engine, const std::string& path, std::size_t count) {
  std::vector<int> tokens;
  if (!path.empty()) {
    TL_TRY_ASSIGN(const std::string text, read_text(path));
    TL_TRY_ASSIGN(tokens,
                  engine.encode(text, Engine::Special::as_text, Engine::Start::add, interrupted));
    if (tokens.empty()) return fail(ErrorCode::invalid_argument, path, ": no text in it");
    const std::size_t own = tokens.size();
    if (own < count)
      std::fprintf(stderr,
                   "note: %s has %zu tokens and %zu are needed: it is repeated, which flatters "
                   "caches and selection\n",
                   printable(path).c_str(), own, count);
    tokens.resize(count);
    for (std::size_t i = own; i < count; ++i) tokens[i] = tokens[i - own];
    return tokens;
  }
  std::uint64_t state = 1;
  for (std::size_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    tokens.push_back(static_cast<int>((state >> 33) % engine.model().vocabulary));
  }
  return tokens;
}

// What a row is about, and what its numbers are held against.
struct Setting {
  std::uint32_t threads = 0, depth = 0, parallel = 1;
  std::string method, host, disk;
  double bandwidth = 0;
  bool by_host = true;  // all of it is computed there
};

Json row_of(const Setting& at, const SpeedTest& test, const SpeedSamples& samples,
            const ModelInfo& model, const Json& build) {
  const double tokens = static_cast<double>(std::max<std::uint64_t>(samples.tokens, 1));
  const auto per_token = [&](std::uint64_t n) { return static_cast<double>(n) / tokens; };
  const CacheReport& cost = samples.cost;
  const Spread rate = spread_of(samples.rates), first = spread_of(samples.first_token_ms);
  // A step of decode reads every weight once; a prefill shares them among its rows.
  const double moved = per_token(samples.weight_reads * model.weight_bytes) +
                       per_token(cost.host_bytes_read) + per_token(cost.device_bytes_read) +
                       per_token(cost.index_bytes_read);
  char answer[17] = "";
  std::snprintf(answer, sizeof answer, "%016llx",
                static_cast<unsigned long long>(samples.answer.value_or(0)));
  Json row{
      {"test", test.name()},
      {"depth", at.depth},
      {"method", at.method},
      {"kv_host", at.host},
      {"kv_disk", at.disk},
      {"threads", at.threads},
      {"parallel", at.parallel},
      {"tokens_per_s", rate.median},
      {"tokens_per_s_low", rate.lowest},
      {"tokens_per_s_high", rate.highest},
      {"repetitions", samples.rates.size()},
      {"ttft_ms", first.median},
      {"device_bytes_per_token", per_token(cost.device_bytes_read)},
      {"device_bytes_fetched_per_token", per_token(cost.device_bytes_fetched)},
      {"device_bytes_exchanged_per_token", per_token(cost.device_bytes_exchanged)},
      {"host_bytes_per_token", per_token(cost.host_bytes_read)},
      {"disk_bytes_per_token", per_token(cost.disk_bytes_read)},
      {"index_bytes_per_token", per_token(cost.index_bytes_read)},
      {"disk_bytes_written", cost.disk_bytes_written},
      {"rows_read", share_of(cost.rows_read, cost.rows_held)},
      {"hit_share", share_of(cost.row_cache_hits, cost.row_cache_hits + cost.row_cache_misses)},
      {"stall_ms_per_token", cost.stall_ms / tokens},
      {"pages_verified", cost.pages_verified},
      {"memory_bandwidth", at.bandwidth},
      {"bandwidth_share", nullptr},
      {"peak_resident_bytes", peak_resident_bytes()},
      {"load", machine_load()},
      {"answer", answer},
      {"same_answers", samples.same_answers},
      {"model", model.name},
      {"weight_types", model.weight_types},
      {"device_layers", model.device_layers},
      {"device", model.device},
      {"weight_bytes", model.weight_bytes}};
  if (test.generated > 0 && at.by_host) row["bandwidth_share"] = moved * rate.median / at.bandwidth;
  row["peak_MiB"] = peak_resident_bytes() >> 20;
  row["spread"] = rate.median > 0 ? (rate.highest - rate.lowest) / rate.median : 0;
  row.update(build);
  return row;
}

// Of a table for people. What a device has is in it where one was asked for.
std::vector<std::string> columns_of(const SweepFlags& flags) {
  std::vector<std::string> columns{"test",    "depth",        "method", "kv_host", "kv_disk",
                                   "threads", "tokens_per_s", "spread", "ttft_ms", "rows_read"};
  if (flags.parallel != "1") columns.insert(columns.begin() + 6, "parallel");
  if (flags.model.gpu_layers != "0" && flags.model.gpu_layers != "auto")
    columns.push_back("device_layers");
  if (flags.tiers.device != "none")
    for (const char* column : {"device_bytes_per_token", "device_bytes_fetched_per_token",
                               "device_bytes_exchanged_per_token"})
      columns.push_back(column);
  for (const char* column :
       {"host_bytes_per_token", "disk_bytes_per_token", "index_bytes_per_token", "hit_share",
        "stall_ms_per_token", "bandwidth_share", "peak_MiB", "commit"})
    columns.push_back(column);
  return columns;
}

class Sweep {
 public:
  Sweep(const SweepFlags& flags, const Plan& plan)
      : flags_(flags),
        plan_(plan),
        tests_(tests_of(plan)),
        table_(stdout, plan.format, columns_of(flags)) {
    for (const SpeedTest& test : tests_) table_.make_room("test", test.name());
    for (const std::string& method : plan.methods) table_.make_room("method", method);
    for (const std::string& host : plan.hosts) table_.make_room("kv_host", host);
    for (const std::string& disk : plan.disks) table_.make_room("kv_disk", disk);
  }

  Status run() {
    for (const std::uint32_t threads : plan_.threads) {
      ModelFlags model = flags_.model;
      model.threads = static_cast<int>(threads);
      TL_TRY_ASSIGN(const std::unique_ptr<Engine> engine, model.open());
      TL_TRY_ASSIGN(const std::vector<int> tokens, filling(*engine, flags_.text, longest()));
      Setting at;
      at.threads = threads;
      at.by_host = engine->model().device_layers == 0 && !flags_.tiers.device.starts_with("cuda");
      TL_TRY_ASSIGN(at.bandwidth, measure_memory_bandwidth(model.threads));
      note_context(engine->model());
      for (const std::string& method : plan_.methods)
        for (const std::string& host : plan_.hosts)
          for (const std::string& disk : plan_.disks) {
            at.method = method;
            at.host = host;
            at.disk = disk;
            TL_TRY(run_caches(*engine, tokens, at));
          }
    }
    return {};
  }

 private:
  // Positions that the longest test reaches.
  std::uint32_t longest() const {
    std::uint32_t test = 0;
    for (const SpeedTest& one : tests_) test = std::max({test, one.prompt, one.generated});
    return test + *std::max_element(plan_.depths.begin(), plan_.depths.end());
  }

  void note_context(const ModelInfo& model) const {
    if (longest() <= model.context) return;
    std::fprintf(
        stderr,
        "note: %s positions are beyond the %s that the model was trained for: speeds hold, "
        "its text would not\n",
        format_count(longest()).c_str(), format_count(model.context).c_str());
  }

  Status run_caches(Engine& engine, std::span<const int> tokens, Setting at) {
    CacheOptions options = flags_.method.cache_options();
    TierFlags tiers = flags_.tiers;
    tiers.host = at.host;
    tiers.disk = at.disk;
    TL_TRY_ASSIGN(options.tiers, tiers.tier_options());
    options.method = at.method;
    options.max_positions = longest();
    for (const std::uint32_t count : plan_.parallel) {
      at.parallel = count == kAsManyAsFit ? most_that_fit(engine, options) : count;
      options.max_timelines = at.parallel;
      TL_TRY(run_cache(engine, options, tokens, at));
    }
    return {};
  }

  // By the plan. One where none does: what is short is said when its cache is opened.
  static std::uint32_t most_that_fit(const Engine& engine, CacheOptions options) {
    for (options.max_timelines = kMaxStepRows; options.max_timelines > 1; --options.max_timelines)
      if (engine.plan(options)) break;
    return options.max_timelines;
  }

  Status run_cache(Engine& engine, const CacheOptions& options, std::span<const int> tokens,
                   Setting at) {
    forget_peak();
    TL_TRY_ASSIGN(const std::unique_ptr<KvCache> cache, engine.open_cache(options));
    for (const std::string& note : cache->notes())
      std::fprintf(stderr, "note: %s: %s\n", printable(at.method).c_str(), printable(note).c_str());
    SpeedBench bench(engine, *cache, tokens, at.parallel, plan_.progress);
    for (const std::uint32_t depth : plan_.depths) {
      at.depth = depth;
      TL_TRY(bench.fill(depth));
      for (const SpeedTest& test : tests_) TL_TRY(measure(engine, bench, at, test));
    }
    return {};
  }

  Status measure(const Engine& engine, SpeedBench& bench, const Setting& at,
                 const SpeedTest& test) {
    if (!flags_.no_warmup) {
      const SpeedTest warmup{std::min(test.prompt, 64u), std::min(test.generated, 4u)};
      TL_TRY(bench.repeat(warmup, nullptr));
    }
    SpeedSamples samples;
    for (std::uint32_t r = 0; r < flags_.repeats; ++r) TL_TRY(bench.repeat(test, &samples));
    if (!samples.same_answers)
      std::fprintf(stderr, "note: %s at depth %s: repetitions did not give the same tokens\n",
                   test.name().c_str(), format_count(at.depth).c_str());
    return table_.add(row_of(at, test, samples, engine.model(), build_));
  }

  const SweepFlags& flags_;
  const Plan& plan_;
  std::vector<SpeedTest> tests_;
  Table table_;
  Json build_ = build_json();
};

Result<Exit> sweep(const SweepFlags& flags) {
  TL_TRY_ASSIGN(const Plan plan, parse_plan(flags));
  if (tests_of(plan).empty())
    return fail(ErrorCode::invalid_argument, "nothing to measure: -p and -n are both 0");
  for (const std::string& host : plan.hosts) TL_TRY(parse_size(host, "--kv-host"));
  for (const std::string& disk : plan.disks) TL_TRY(parse_size(disk, "--kv-disk"));
  TierFlags tiers = flags.tiers;
  for (const std::string& disk : plan.disks)
    if (disk != "0") tiers.disk = disk;
  print_notes(flags.model.notes());
  print_notes(plan.thread_notes);
  print_notes(tiers.notes());
  print_notes(flags.method.notes());
  if (flags.model.context != 0)
    print_notes(std::array{std::string("-c has no effect: contexts are as long as the tests are")});
  Sweep run(flags, plan);
  TL_TRY(run.run());
  return Exit::success;
}

}  // namespace

Result<Exit> run_sweep(const std::vector<std::string>& arguments) {
  SweepFlags flags;
  CommandLine line(
      "sweep", "-m FILE.gguf [options]",
      "Measures speed: prompts of -p tokens and generations of -n tokens, at each depth -d, for "
      "each method and tier size, a row each. LIST is a,b,c; a number may be a range: first-last, "
      "first-last+step or first-last*factor. With --parallel tokens/s are of all sequences "
      "together. ttft_ms counts from empty timelines, the depth included. bandwidth_share holds "
      "the bytes that a token reads (its share of all weights, rows and index) against a "
      "streaming read of memory, measured first.");
  auto add = line.group("What is measured").add_options();
  const auto value = [](std::string* into, const char* name) {
    return po::value(into)->value_name(name);
  };
  add("prompt-tokens,p", value(&flags.prompts, "LIST"), "tokens of prompt; 0: none (512)");
  add("gen-tokens,n", value(&flags.generations, "LIST"), "tokens to generate; 0: none (128)");
  add("depth,d", value(&flags.depths, "LIST"), "tokens in the cache before each (0)");
  add("repetitions,r", po::value(&flags.repeats)->value_name("N"), "of each test (5)");
  add("threads,t", value(&flags.threads, "LIST"), "threads; 0: as many as may be used (0)");
  add("method", value(&flags.methods, "LIST"), "methods (exact)");
  add("kv-host", value(&flags.hosts, "LIST"),
      "host memory for KV; with a disk for the index, the tail and copies: sizes or auto (auto)");
  add("kv-disk", value(&flags.disks, "LIST"), "disk where KV rows then live: sizes, auto or 0 (0)");
  add("parallel", value(&flags.parallel, "LIST"),
      "sequences that decode together, each with a context of its own; auto: as many as the plan "
      "has room for, at most 16 (1)");
  add("text", value(&flags.text, "FILE"), "fill contexts with this text (a fixed mix of tokens)");
  add("no-warmup", po::bool_switch(&flags.no_warmup), "no short run before each test");
  add("output,o", value(&flags.format, "FORMAT"), "md, csv, json or jsonl (md)");
  add("progress", value(&flags.progress, "STYLE"), "bar, json, none or auto (auto)");
  flags.model.add_without_threads_to(&line);
  po::options_description& rest = line.group("Cache");
  flags.method.add_without_method_to(&rest);
  flags.tiers.add_without_budgets_to(&rest);
  TL_TRY_ASSIGN(const CommandLine::Outcome outcome, line.parse(arguments));
  if (outcome == CommandLine::Outcome::helped) return Exit::success;
  return sweep(flags);
}

}  // namespace thermocline
