// thermocline eval: methods beside full attention on the same text, in the same program.
#include <algorithm>
#include <cstdio>
#include <optional>

#include "tools/thermocline/command.h"
#include "tools/thermocline/comparison.h"
#include "tools/thermocline/fidelity_row.h"
#include "tools/thermocline/flags.h"
#include "tools/thermocline/measured_run.h"
#include "tools/thermocline/method_list.h"
#include "tools/thermocline/passage.h"
#include "tools/thermocline/printable.h"
#include "tools/thermocline/range.h"
#include "tools/thermocline/statistics.h"
#include "tools/thermocline/table.h"

namespace thermocline {
namespace {

namespace po = boost::program_options;
using Json = nlohmann::ordered_json;

struct EvalFlags {
  ModelFlags model;
  TierFlags tiers;
  MethodFlags method;
  std::vector<std::string> methods{"sketch"}, texts;
  std::uint32_t steps = 64;
  std::string depths = "0";
  std::string format = "md", progress = "auto";
  bool own_prefill = false;
};

// The flags, parsed.
struct Plan {
  std::vector<ListedMethod> methods;
  std::vector<std::uint32_t> depths;  // ascending; 0, as far as the text goes, last
  TierOptions tiers;
  TableFormat format{};
  ProgressStyle style{};
};

Result<Plan> parse_plan(const EvalFlags& flags) {
  Plan plan;
  TL_TRY_ASSIGN(plan.format, parse_table_format(flags.format));
  TL_TRY_ASSIGN(plan.style, parse_progress_style(flags.progress));
  TL_TRY_ASSIGN(plan.tiers, flags.tiers.tier_options());
  TL_TRY_ASSIGN(plan.methods, parse_method_list(flags.methods, "--method"));
  for (ListedMethod& method : plan.methods) {
    TL_TRY(flags.method.check(method.name));
    method.settings.insert(method.settings.begin(), flags.method.settings.begin(),
                           flags.method.settings.end());
  }
  TL_TRY_ASSIGN(plan.depths, parse_range_list(flags.depths, "--depth"));
  // Texts are read on from depth to depth.
  std::sort(plan.depths.begin(), plan.depths.end(),
            [](std::uint32_t one, std::uint32_t other) { return one - 1 < other - 1; });
  plan.depths.erase(std::unique(plan.depths.begin(), plan.depths.end()), plan.depths.end());
  if (flags.texts.empty()) return fail(ErrorCode::invalid_argument, "no text: say --text FILE");
  if (flags.steps == 0 || flags.steps > 1000000)
    return fail(ErrorCode::invalid_argument, "--steps must be between 1 and 1000000");
  return plan;
}

class Evaluation {
 public:
  Evaluation(const EvalFlags& flags, const Plan& plan, Engine& engine)
      : flags_(flags),
        plan_(plan),
        engine_(engine),
        table_(stdout, plan.format, fidelity_columns()),
        by_setting_(plan.depths.size() * plan.methods.size()) {}

  Status run() {
    for (const std::string& path : flags_.texts) {
      TL_TRY_ASSIGN(EvalText text, read_eval_text(engine_, path));
      texts_.push_back(std::move(text));
    }
    // What is wrong with any of it costs no reading.
    for (const EvalText& text : texts_) {
      TL_TRY_ASSIGN(const std::vector<Passage> passages, passages_of(text));
      for (const Passage& passage : passages)
        for (const ListedMethod& method : plan_.methods)
          TL_TRY(engine_.plan(options_of(method, passage)));
    }
    for (const EvalText& text : texts_) TL_TRY(measure(text));
    if (texts_.size() > 1)
      for (const std::vector<Json>& rows : by_setting_) TL_TRY(show(mean_row(rows)));
    return {};
  }

 private:
  Result<std::vector<Passage>> passages_of(const EvalText& text) const {
    const std::uint32_t context =
        flags_.model.context == 0 ? engine_.model().context : flags_.model.context;
    std::vector<Passage> passages;
    for (const std::uint32_t depth : plan_.depths) {
      TL_TRY_ASSIGN(const Passage passage, cut_passage(text, depth, flags_.steps, context));
      passages.push_back(passage);
    }
    return passages;
  }

  CacheOptions options_of(const ListedMethod& method, const Passage& passage) const {
    CacheOptions options = flags_.method.cache_options();
    options.method = method.name;
    options.method_overrides = method.settings;
    options.tiers = plan_.tiers;
    options.max_positions = passage.depth + passage.steps;
    return options;
  }

  // Full attention reads the text once, with everything in memory: all depths and methods are held
  // against that.
  Status measure(const EvalText& text) {
    TL_TRY_ASSIGN(const std::vector<Passage> passages, passages_of(text));
    CacheOptions options;
    options.method_directory = method_directory(flags_.method.directory);
    options.max_timelines = 2;
    options.max_positions = 0;
    for (const Passage& passage : passages)
      options.max_positions = std::max(options.max_positions, passage.depth + passage.steps);
    TL_TRY_ASSIGN(MeasuredRun full,
                  MeasuredRun::open(engine_, options, text.name + ", full attention", plan_.style));
    for (std::size_t d = 0; d < passages.size(); ++d) {
      TL_TRY(full.read(passages[d].read()));
      for (std::size_t m = 0; m < plan_.methods.size(); ++m) {
        TL_TRY_ASSIGN(const Json row, measure(passages[d], plan_.methods[m], full));
        TL_TRY(show(row));
        by_setting_[d * plan_.methods.size() + m].push_back(row);
      }
    }
    return {};
  }

  Result<Json> measure(const Passage& passage, const ListedMethod& method,
                       const MeasuredRun& full) {
    TL_TRY_ASSIGN(MeasuredRun run,
                  MeasuredRun::open(engine_, options_of(method, passage),
                                    passage.text->name + ", " + method.label(), plan_.style));
    for (const std::string& note : run.cache().notes()) note_once(method.label() + ": " + note);
    TL_TRY(fill(passage, full, &run));
    TL_TRY_ASSIGN(MeasuredRun beside, full.fork());
    TL_TRY_ASSIGN(const Comparison comparison,
                  compare(passage, engine_.layers(), &beside, &run, plan_.style));
    Json row = fidelity_row(passage, method.label(), comparison);
    row.update(of_all_rows_);
    return row;
  }

  // What full attention has read is taken over, unless the method has to see the text being read.
  Status fill(const Passage& passage, const MeasuredRun& full, MeasuredRun* run) const {
    if (flags_.own_prefill) return run->read(passage.read());
    const Status taken = run->take(full);
    if (!taken && taken.error().code == ErrorCode::unsupported) return run->read(passage.read());
    return taken;
  }

  void note_once(const std::string& note) {
    if (std::find(noted_.begin(), noted_.end(), note) != noted_.end()) return;
    noted_.push_back(note);
    print_notes({&noted_.back(), 1});
  }

  Status show(Json row) {
    // A cell is a number: the steps one by one are for the formats that have lists.
    if (plan_.format == TableFormat::csv) row.erase("kl_steps");
    return table_.add(row);
  }

  const EvalFlags& flags_;
  const Plan& plan_;
  Engine& engine_;
  Table table_;
  std::vector<std::vector<Json>> by_setting_;  // [depth][method]: a row a text
  std::vector<EvalText> texts_;
  std::vector<std::string> noted_;
  Json of_all_rows_ = rows_facts();

  Json rows_facts() const {
    Json facts{{"model", engine_.model().name}, {"weight_types", engine_.model().weight_types}};
    facts.update(build_json());
    return facts;
  }
};

Result<Exit> evaluate(const EvalFlags& flags) {
  TL_TRY_ASSIGN(const Plan plan, parse_plan(flags));
  print_notes(flags.model.notes());
  print_notes(flags.tiers.notes());
  TL_TRY_ASSIGN(const std::unique_ptr<Engine> engine, flags.model.open());
  Evaluation evaluation(flags, plan, *engine);
  TL_TRY(evaluation.run());
  return Exit::success;
}

}  // namespace

Result<Exit> run_eval(const std::vector<std::string>& arguments) {
  EvalFlags flags;
  CommandLine line(
      "eval", "-m FILE.gguf --method LIST --text FILE [options]",
      "Holds methods against full attention: the first part of a text is read once, by full "
      "attention, each method takes those rows over, and then both decode the text's own next "
      "tokens. A method in LIST may have settings, and a setting several values, a method each: "
      "sketch:select.share=0.01/0.02/0.05. kl is KL(full || method) in nats, kl_low and kl_high "
      "bound its mean at 95 % (a bootstrap over the steps); top1_near counts picks that full "
      "attention rates within 0.1 nats of its own best; ppl is the perplexity of the text under "
      "each. read: all bytes that a step reads of rows and index, as a share of an f16 cache's. "
      "rows_read: rows (a position's key and value in one KV head) that are attended exactly, "
      "sinks and tail among them, as a share of those that full attention reads, over layers and "
      "steps; index_read: the sketches and cluster means that are looked at, in bytes as read is. "
      "row_bytes, index_bytes, disk_bytes: a step.");
  auto add = line.group("What is measured").add_options();
  add("method", po::value(&flags.methods)->value_name("LIST"),
      "methods, a,b,c or repeated, with settings as in sketch:select.share=0.05 (sketch)");
  add("text", po::value(&flags.texts)->value_name("FILE"), "a text; may be repeated, with a mean");
  add("depth,d", po::value(&flags.depths)->value_name("LIST"),
      "tokens read before, a row each; 0: all but the steps, as far as the context goes (0)");
  add("steps", po::value(&flags.steps)->value_name("N"), "tokens decoded and compared (64)");
  add("own-prefill", po::bool_switch(&flags.own_prefill),
      "every method reads the text itself: slower, warms a disk's row cache, and beyond 32k "
      "tokens a method that rounds or drops rows reads what it has kept");
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
