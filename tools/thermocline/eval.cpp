// thermocline eval: methods beside full attention, on texts or on tasks.
#include <utility>

#include "tools/thermocline/command.h"
#include "tools/thermocline/eval_free.h"
#include "tools/thermocline/eval_tasks.h"
#include "tools/thermocline/eval_texts.h"
#include "tools/thermocline/evaluation.h"
#include "tools/thermocline/generation.h"
#include "tools/thermocline/statistics.h"

namespace thermocline {
namespace {

namespace po = boost::program_options;

// Options of one kind of measurement, given with another, would have no effect: more likely a
// mistake than meant.
Status check_kind(const EvalFlags& flags, const CommandLine& line) {
  for (const auto& [name, given] : {std::pair("tasks", &flags.tasks),
                                    {"session", &flags.session},
                                    {"dump", &flags.dump},
                                    {"resume", &flags.resume}})
    if (line.given(name) && given->empty())
      return fail(ErrorCode::invalid_argument, "--", name, " '' names nothing: leave it out");
  const bool tasks = line.given("tasks"), free = line.given("free");
  if (free && (flags.free == 0 || flags.free > 1000000))
    return fail(ErrorCode::invalid_argument, "--free must be between 1 and 1000000");
  if (!(flags.temperature >= 0 && flags.temperature <= 1000))
    return fail(ErrorCode::invalid_argument, "--temp must be between 0 and 1000");
  if (tasks && free)
    return fail(ErrorCode::invalid_argument, "--tasks and --free are measured one at a time");
  for (const char* of_texts : {"steps", "mass", "dump"})
    if ((tasks || free) && line.given(of_texts))
      return fail(ErrorCode::invalid_argument, "--", of_texts, " is for measuring on texts, and ",
                  tasks ? "--tasks asks for tasks" : "--free writes them");
  for (const char* of_tasks : {"samples", "needle-depth"})
    if (!tasks && line.given(of_tasks))
      return fail(ErrorCode::invalid_argument, "--", of_tasks, " goes with --tasks");
  if (!free && line.given("temp"))
    return fail(ErrorCode::invalid_argument, "--temp goes with --free");
  for (const char* of_texts : {"tasks", "depth", "own-prefill", "ctx-size"})
    if (line.given("session") && line.given(of_texts))
      return fail(ErrorCode::invalid_argument, "--", of_texts,
                  " is for --text: a --session has been read, and is measured at its end");
  return {};
}

Result<Exit> evaluate(const EvalFlags& flags) {
  TL_TRY_ASSIGN(const EvalPlan plan, parse_eval_plan(flags));
  print_notes(flags.model.notes());
  print_notes(flags.tiers.notes());
  print_notes(flags.method.notes());
  TL_TRY_ASSIGN(const std::unique_ptr<Engine> engine, flags.model.open());
  if (const auto note = note_on_context(flags.model.context, engine->model()))
    print_notes({&*note, 1});
  TL_TRY(!flags.tasks.empty() ? evaluate_tasks(flags, plan, *engine)
         : flags.free > 0     ? evaluate_free(flags, plan, *engine)
                              : evaluate_texts(flags, plan, *engine));
  return Exit::success;
}

}  // namespace

Result<Exit> run_eval(const std::vector<std::string>& arguments) {
  EvalFlags flags;
  CommandLine line(
      "eval", "-m FILE.gguf --method LIST --text FILE | --session FILE [options]",
      "Holds methods against full attention: the first part of a text is read once, by full "
      "attention, each method takes those rows over, and then both decode the text's own next "
      "tokens; or, with --tasks, answer questions about what is hidden in the text; or, with "
      "--free, write on by themselves. A method in "
      "LIST may have settings, and a setting several values, a method each: "
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
  add("session", po::value(&flags.session)->value_name("FILE"),
      "in place of --text, a session that was made with --method exact: the end of its own text is "
      "decoded, nothing is read anew, and full attention reads its rows where they are");
  add("depth,d", po::value(&flags.depths)->value_name("LIST"),
      "tokens read before, a row each; 0: all but the steps, as far as the context goes (0)");
  add("steps", po::value(&flags.steps)->value_name("N"), "tokens decoded and compared (64)");
  add("mass", po::bool_switch(&flags.mass),
      "the share of the attention to all positions that lies on the rows read exactly: the mean, "
      "the lowest layer's, and in json by layer; for the method's own queries, over full "
      "attention's keys");
  add("dump", po::value(&flags.dump)->value_name("DIR"),
      "write queries, keys and the positions read there, a folder a text, depth and method, for "
      "numpy; about.json says what is in it");
  add("own-prefill", po::bool_switch(&flags.own_prefill),
      "every method reads the text itself: slower, warms a disk's row cache, and beyond 32k "
      "tokens a method that rounds or drops rows reads what it has kept");
  auto add_task = line.group("Tasks").add_options();
  add_task("tasks", po::value(&flags.tasks)->value_name("LIST"),
           "needle, multi-needle, key-value, variable-tracking: numbers hidden in --text at each "
           "--depth, answered greedily; methods are scored where full attention gets 60 %");
  add_task("samples", po::value(&flags.samples)->value_name("N"),
           "questions of each task at each depth; score_low and score_high are Wilson's 95 % (20)");
  add_task("needle-depth", po::value(&flags.needle_depths)->value_name("LIST"),
           "where in the text it is hidden, as shares, in turn (0.1,0.3,0.5,0.7,0.9)");
  auto add_free = line.group("Texts written freely").add_options();
  add_free("free", po::value(&flags.free)->value_name("N"),
           "after each --depth, a method writes N tokens by itself, and full attention with two "
           "seeds, of which methods have the first; same: tokens until the first that differs from "
           "full attention's (over all prompts the median and quartiles), ppl_full and kl_mean: of "
           "what was written, as full attention reads it");
  add_free("temp", po::value(&flags.temperature)->value_name("X"),
           "temperature; 0: always the likeliest; else as generate samples (0.8)");
  auto add_output = line.group("Output").add_options();
  add_output("output,o", po::value(&flags.format)->value_name("FORMAT"),
             "md, csv, json or jsonl (md)");
  add_output("resume", po::value(&flags.resume)->value_name("FILE"),
             "keep rows there as they are measured, and measure none that is there already: a run "
             "that was stopped goes on");
  add_output("progress", po::value(&flags.progress)->value_name("STYLE"),
             "bar, json, none or auto (auto)");
  flags.method.add_without_method_to(&line.group("Methods' parameters"));
  flags.model.add_to(&line);
  flags.tiers.add_to(&line);
  TL_TRY_ASSIGN(const CommandLine::Outcome outcome, line.parse(arguments));
  if (outcome == CommandLine::Outcome::helped) return Exit::success;
  TL_TRY(check_kind(flags, line));
  return evaluate(flags);
}

}  // namespace thermocline
