// thermocline eval: methods beside full attention on the same text, in the same program. Both are
// fed the text's own tokens, so one step's difference is not the next one's input.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>

#include "tools/thermocline/command.h"
#include "tools/thermocline/fidelity.h"
#include "tools/thermocline/flags.h"
#include "tools/thermocline/generation.h"
#include "tools/thermocline/interruption.h"
#include "tools/thermocline/prompt.h"
#include "tools/thermocline/range.h"
#include "tools/thermocline/spread.h"
#include "tools/thermocline/statistics.h"
#include "tools/thermocline/table.h"

namespace thermocline {
namespace {

namespace po = boost::program_options;
using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr double kNearTop = 0.1;  // nats: a pick that full attention rates this near its own best

struct EvalFlags {
  ModelFlags model;
  TierFlags tiers;
  MethodFlags method;
  std::vector<std::string> methods{"sketch"}, texts;
  std::uint32_t steps = 64, prompt_tokens = 0;
  std::string format = "md", progress = "auto";
};

// Bytes of one row, the key and the value of a position in one KV head, as methods read it: f16.
double row_bytes(std::span<const LayerSpec> layers) {
  double bytes = 0, heads = 0;
  for (const LayerSpec& layer : layers) {
    bytes += 2.0 * layer.kv_heads * (layer.key_dim + layer.value_dim);
    heads += layer.kv_heads;
  }
  return heads > 0 ? bytes / heads : 0;
}

// A cache under one method with one timeline.
struct Run {
  std::unique_ptr<KvCache> cache;
  Timeline timeline;
  double step_ms = 0;
};

// One text and its first part, `prompt` tokens long.
struct Passage {
  std::string name;
  std::vector<int> tokens;
  std::uint32_t prompt = 0, steps = 0;
};

Result<Passage> read_passage(const Engine& engine, const EvalFlags& flags,
                             const std::string& path) {
  Passage passage;
  passage.name = std::filesystem::path(path).filename();
  TL_TRY_ASSIGN(const std::string text, read_text(path));
  TL_TRY_ASSIGN(passage.tokens,
                engine.encode(text, Engine::Special::as_text, Engine::Start::add, interrupted));
  passage.steps = flags.steps;
  // The last step is held against the token after the one that it is fed.
  const std::size_t needed = std::size_t{flags.prompt_tokens} + flags.steps + 1;
  const std::size_t least = std::max<std::size_t>(needed, std::size_t{flags.steps} + 2);
  if (passage.tokens.size() < least)
    return fail(ErrorCode::exhausted, path, ": ", passage.tokens.size(), " tokens, and ", least,
                " are needed for --prompt-tokens ", flags.prompt_tokens, " and --steps ",
                flags.steps);
  const std::uint32_t context =
      flags.model.context == 0 ? engine.model().context : flags.model.context;
  if (std::uint64_t{flags.steps} + 1 > context)
    return fail(ErrorCode::exhausted, "--steps ", flags.steps, " do not fit the context of ",
                context, " (-c)");
  // All of the text by default, as far as the context goes.
  const std::size_t room = std::min<std::size_t>(passage.tokens.size() - 1, context) - flags.steps;
  if (flags.prompt_tokens > room)
    return fail(ErrorCode::exhausted, "--prompt-tokens ", flags.prompt_tokens, " and --steps ",
                flags.steps, " do not fit the context of ", context, " (-c)");
  passage.prompt =
      flags.prompt_tokens == 0 ? static_cast<std::uint32_t>(room) : flags.prompt_tokens;
  return passage;
}

Result<Run> prefill(Engine& engine, const Passage& passage, CacheOptions options,
                    ProgressStyle style) {
  Run run;
  options.max_positions = passage.prompt + passage.steps;
  TL_TRY_ASSIGN(run.cache, engine.open_cache(options));
  TL_TRY_ASSIGN(run.timeline, run.cache->start());
  Progress progress(style, passage.name + ", " + options.method, passage.prompt);
  PrefillOptions prefill;
  prefill.progress = [&](const PrefillProgress& at) { progress.update(at.done); };
  prefill.stop = interrupted;
  std::vector<float> logits(engine.model().vocabulary);
  TL_TRY(engine.prefill(run.timeline, std::span(passage.tokens).first(passage.prompt), logits,
                        prefill));
  return run;
}

Status step(Engine& engine, Run* run, int token, std::vector<float>* logits) {
  const Clock::time_point start = Clock::now();
  const Feed feed{&run->timeline, token};
  TL_TRY(engine.step({&feed, 1}, MatView<float>(logits->data(), 1, logits->size())));
  run->step_ms += std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  return {};
}

Json row_of(const Passage& passage, const std::string& method,
            const std::vector<StepFidelity>& steps, const CacheReport& cost, const Run& full,
            const Run& other, double bytes_of_row) {
  std::vector<double> divergences;
  double same = 0, near = 0, full_nll = 0, other_nll = 0;
  for (const StepFidelity& step : steps) {
    divergences.push_back(step.divergence);
    same += step.same_top ? 1 : 0;
    near += step.regret <= kNearTop ? 1 : 0;
    full_nll += step.full_nll;
    other_nll += step.other_nll;
  }
  const double count = static_cast<double>(std::max<std::size_t>(steps.size(), 1));
  const double read = static_cast<double>(cost.rows_read) * bytes_of_row;
  const double held = static_cast<double>(cost.rows_held) * bytes_of_row;
  const double index = static_cast<double>(cost.index_bytes_read);
  const auto rate = [&](double ms) { return ms > 0 ? count / ms * 1e3 : 0; };
  return Json{{"text", passage.name},
              {"method", method},
              {"prompt", passage.prompt},
              {"steps", steps.size()},
              {"kl_mean", mean_of(divergences)},
              {"kl_median", percentile(divergences, 0.5)},
              {"kl_p99", percentile(divergences, 0.99)},
              {"kl_max", percentile(divergences, 1)},
              {"top1", same / count},
              {"top1_near", near / count},
              {"nll_full", full_nll / count},
              {"nll", other_nll / count},
              {"rows_read", share_of(cost.rows_read, cost.rows_held)},
              {"index_read", held > 0 ? index / held : 0},
              {"row_bytes", read / count},
              {"index_bytes", index / count},
              {"disk_bytes", static_cast<double>(cost.disk_bytes_read) / count},
              {"tokens_per_s", rate(other.step_ms)},
              {"tokens_per_s_full", rate(full.step_ms)}};
}

// The same steps for both, one after the other, so that a busy moment of the machine meets both.
Result<Json> compare(Engine& engine, const Passage& passage, const std::string& method, Run* full,
                     Run* other) {
  TL_TRY(full->timeline.truncate(passage.prompt));
  full->step_ms = 0;
  const CacheReport before = other->cache->report();
  std::vector<float> full_logits(engine.model().vocabulary), logits(engine.model().vocabulary);
  std::vector<StepFidelity> steps;
  for (std::uint32_t i = 0; i < passage.steps && !interrupted(); ++i) {
    const int token = passage.tokens[passage.prompt + i];
    TL_TRY(step(engine, full, token, &full_logits));
    TL_TRY(step(engine, other, token, &logits));
    steps.push_back(compare_logits(full_logits, logits, passage.tokens[passage.prompt + i + 1]));
  }
  if (interrupted()) return fail(ErrorCode::cancelled, "interrupted");
  return row_of(passage, method, steps, difference(other->cache->report(), before), *full, *other,
                row_bytes(engine.layers()));
}

// The mean over the texts of each number; the largest of kl_max.
Json mean_row(const std::vector<Json>& rows) {
  Json mean = rows.front();
  for (auto& [name, value] : mean.items()) {
    if (!value.is_number()) continue;
    std::vector<double> values;
    for (const Json& row : rows) values.push_back(row[name].get<double>());
    value = name == "kl_max" ? percentile(values, 1) : mean_of(values);
  }
  mean["text"] = "mean of " + std::to_string(rows.size());
  return mean;
}

Result<Exit> evaluate(const EvalFlags& flags) {
  TL_TRY_ASSIGN(const TableFormat format, parse_table_format(flags.format));
  TL_TRY_ASSIGN(const ProgressStyle style, parse_progress_style(flags.progress));
  TL_TRY_ASSIGN(const TierOptions tiers, flags.tiers.tier_options());
  std::vector<std::string> methods;
  for (const std::string& list : flags.methods) {
    TL_TRY_ASSIGN(const std::vector<std::string> names, parse_list(list, "--method"));
    methods.insert(methods.end(), names.begin(), names.end());
  }
  for (const std::string& method : methods) TL_TRY(flags.method.check(method));
  if (flags.texts.empty()) return fail(ErrorCode::invalid_argument, "no text: say --text FILE");
  if (flags.steps == 0 || flags.steps > 1000000)
    return fail(ErrorCode::invalid_argument, "--steps must be between 1 and 1000000");

  print_notes(flags.model.notes());
  print_notes(flags.tiers.notes());
  TL_TRY_ASSIGN(const std::unique_ptr<Engine> engine, flags.model.open());
  std::vector<std::vector<Json>> by_method(methods.size());
  Table table(stdout, format,
              {"text", "method", "prompt", "kl_mean", "kl_median", "kl_p99", "kl_max", "top1",
               "top1_near", "nll_full", "nll", "rows_read", "index_read", "row_bytes",
               "index_bytes", "tokens_per_s", "tokens_per_s_full"});
  for (const std::string& path : flags.texts) {
    TL_TRY_ASSIGN(const Passage passage, read_passage(*engine, flags, path));
    std::vector<CacheOptions> chosen;
    for (const std::string& method : methods) {
      chosen.push_back(flags.method.cache_options());
      chosen.back().method = method;
      chosen.back().tiers = tiers;
      chosen.back().max_positions = passage.prompt + passage.steps;
      TL_TRY(engine->plan(chosen.back()));  // what is wrong costs no reading of the text
    }
    CacheOptions options;  // the reference: full attention, everything in memory
    options.method_directory = method_directory(flags.method.directory);
    TL_TRY_ASSIGN(Run full, prefill(*engine, passage, options, style));
    for (std::size_t m = 0; m < methods.size(); ++m) {
      TL_TRY_ASSIGN(Run other, prefill(*engine, passage, chosen[m], style));
      TL_TRY_ASSIGN(const Json row, compare(*engine, passage, methods[m], &full, &other));
      TL_TRY(table.add(row));
      by_method[m].push_back(row);
    }
  }
  if (flags.texts.size() > 1)
    for (const std::vector<Json>& rows : by_method) TL_TRY(table.add(mean_row(rows)));
  return Exit::success;
}

}  // namespace

Result<Exit> run_eval(const std::vector<std::string>& arguments) {
  EvalFlags flags;
  CommandLine line(
      "eval", "-m FILE.gguf --method NAME --text FILE [options]",
      "Holds methods against full attention: the first part of a text is read under both, then "
      "both "
      "decode the text's own next tokens. kl is KL(full || method) in nats; top1_near counts picks "
      "that full attention rates within 0.1 nats of its own best. rows_read: rows (a position's "
      "key "
      "and value in one KV head) that are attended exactly, sinks and tail among them, as a share "
      "of "
      "those that full attention reads, over layers and steps; index_read: the sketches and "
      "cluster "
      "means that are looked at, as a share of the same in bytes. row_bytes, index_bytes, "
      "disk_bytes: a step.");
  auto add = line.group("What is measured").add_options();
  add("method", po::value(&flags.methods)->value_name("LIST"),
      "methods, a,b,c or repeated (sketch)");
  add("text", po::value(&flags.texts)->value_name("FILE"), "a text; may be repeated, with a mean");
  add("steps", po::value(&flags.steps)->value_name("N"), "tokens decoded and compared (64)");
  add("prompt-tokens", po::value(&flags.prompt_tokens)->value_name("N"),
      "tokens read before; 0: all but the steps, as far as the context goes (0)");
  add("output,o", po::value(&flags.format)->value_name("FORMAT"), "md, csv, json or jsonl (md)");
  add("progress", po::value(&flags.progress)->value_name("STYLE"),
      "bar, json, none or auto (auto)");
  flags.method.add_without_method_to(&line.group("Methods' parameters"));
  flags.model.add_to(&line);
  flags.tiers.add_to(&line);
  TL_TRY_ASSIGN(const CommandLine::Outcome outcome, line.parse(arguments));
  if (outcome == CommandLine::Outcome::helped) return Exit::success;
  return evaluate(flags);
}

}  // namespace thermocline
