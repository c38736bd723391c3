#include "tools/thermocline/evaluation.h"

#include <algorithm>
#include <cstdio>

#include "tools/thermocline/range.h"
#include "tools/thermocline/statistics.h"

namespace thermocline {

using Json = nlohmann::ordered_json;

Result<EvalPlan> parse_eval_plan(const EvalFlags& flags) {
  EvalPlan plan;
  TL_TRY_ASSIGN(plan.format, parse_table_format(flags.format));
  TL_TRY_ASSIGN(plan.style, parse_progress_style(flags.progress));
  TL_TRY_ASSIGN(plan.tiers, flags.tiers.tier_options());
  TL_TRY_ASSIGN(plan.methods, parse_method_list(flags.methods, "--method"));
  for (ListedMethod& method : plan.methods) {
    TL_TRY(flags.method.check(method.name, method.settings));
    const std::vector<std::string> of_all = flags.method.overrides();
    method.settings.insert(method.settings.begin(), of_all.begin(), of_all.end());
  }
  TL_TRY_ASSIGN(plan.depths, parse_range_list(flags.depths, "--depth"));
  // Texts are read on from depth to depth.
  std::sort(plan.depths.begin(), plan.depths.end(),
            [](std::uint32_t one, std::uint32_t other) { return one - 1 < other - 1; });
  plan.depths.erase(std::unique(plan.depths.begin(), plan.depths.end()), plan.depths.end());
  if (flags.texts.empty() && flags.session.empty())
    return fail(ErrorCode::invalid_argument, "no text: say --text FILE");
  if (!flags.texts.empty() && !flags.session.empty())
    return fail(ErrorCode::invalid_argument,
                "--session and --text: a session is measured on the text that it holds");
  if (flags.session.empty()) return plan;
  for (const ListedMethod& method : plan.methods) {
    TL_TRY_ASSIGN(
        const std::string watched,
        watched_by(method.name, method_directory(flags.method.directory), method.settings));
    if (!watched.empty())
      return fail(ErrorCode::unsupported, "--session ", flags.session, " with method ",
                  method.label(), ", which watches a prefill (", watched,
                  "): a session's rows have been read; measure it with --text");
  }
  return plan;
}

Evaluation::Evaluation(const EvalFlags& flags, const EvalPlan& plan, Engine& engine,
                       MeasuredRows rows, std::vector<std::string> columns, RowColumns kept)
    : flags_(flags),
      plan_(plan),
      engine_(engine),
      rows_(std::move(rows)),
      kept_(std::move(kept)),
      table_(std::make_unique<Table>(stdout, plan.format, std::move(columns))),
      of_all_rows_{{"model", engine.model().name},
                   {"weight_types", engine.model().weight_types},
                   {"device_layers", engine.model().device_layers}} {
  of_all_rows_.update(build_json());
  // A later row's may be longer than the first's.
  for (const ListedMethod& method : plan.methods) table_->make_room("method", method.label());
}

Result<Evaluation> Evaluation::open(const EvalFlags& flags, const EvalPlan& plan, Engine& engine,
                                    std::vector<std::string> columns, RowColumns kept) {
  TL_TRY_ASSIGN(MeasuredRows rows, MeasuredRows::open(flags.resume));
  return Evaluation(flags, plan, engine, std::move(rows), std::move(columns), std::move(kept));
}

Result<std::vector<EvalText>> Evaluation::read_texts() {
  std::vector<EvalText> texts;
  for (const std::string& path : flags_.texts) {
    TL_TRY_ASSIGN(EvalText text, read_eval_text(engine_, path));
    texts.push_back(std::move(text));
  }
  if (!flags_.session.empty()) {
    TL_TRY_ASSIGN(EvalText text, read_eval_session(engine_, flags_.session));
    texts.push_back(std::move(text));
  }
  for (const EvalText& text : texts) table_->make_room("text", text.name);
  return texts;
}

std::uint32_t Evaluation::context(const EvalText& text) const {
  const std::uint32_t asked = flags_.model.context;
  return std::max(asked == 0 ? engine_.model().context : asked, text.held);
}

CacheOptions Evaluation::options_of(const ListedMethod& method, std::uint32_t positions) const {
  CacheOptions options = flags_.method.cache_options();
  options.method = method.name;
  options.method_overrides = method.settings;
  options.tiers = plan_.tiers;
  options.max_positions = positions;
  return options;
}

Result<MeasuredRun> Evaluation::open_full(std::uint32_t positions, const std::string& text) const {
  CacheOptions options;
  options.method_directory = method_directory(flags_.method.directory);
  options.max_timelines = 2;
  options.max_positions = positions;
  options.session.path = flags_.session;
  return MeasuredRun::open(engine_, options, text + ", full attention", plan_.style);
}

Status Evaluation::read_in_full(const Passage& passage, std::uint32_t positions,
                                std::optional<MeasuredRun>* full) const {
  if (!*full) {
    TL_TRY_ASSIGN(MeasuredRun opened, open_full(positions, passage.text->name));
    full->emplace(std::move(opened));
  }
  return (*full)->read(passage.read());
}

Result<MeasuredRun> Evaluation::open_filled(const ListedMethod& method, std::span<const int> tokens,
                                            std::uint32_t positions, const std::string& text,
                                            const MeasuredRun& full) {
  TL_TRY_ASSIGN(MeasuredRun run, MeasuredRun::open(engine_, options_of(method, positions),
                                                   text + ", " + method.label(), plan_.style));
  for (const std::string& note : run.cache().notes()) note_once(method.label() + ": " + note);
  if (!flags_.own_prefill) {
    const Status taken = run.take(full);
    if (taken) return run;
    if (!flags_.session.empty() || taken.error().code != ErrorCode::unsupported)
      return tl::unexpected(taken.error());
  }
  TL_TRY(run.read(tokens));
  return run;
}

Result<MeasurementName> Evaluation::name_of(const ListedMethod& method) const {
  TL_TRY_ASSIGN(const std::vector<SessionFact> facts, engine_.session_facts(options_of(method, 0)));
  MeasurementName name;
  for (const SessionFact& fact : facts) name.add(fact.name).add(fact.value);
  // What its times depend on.
  const ModelFlags& model = flags_.model;
  const TierOptions& tiers = plan_.tiers;
  name.add(model.isa).add(std::to_string(model.threads));
  name.add(std::to_string(engine_.model().device_layers)).add(engine_.model().device);
  if (engine_.model().device_head) name.add("head");
  name.add(tiers.device).add(std::to_string(tiers.device_bytes));
  name.add(std::to_string(tiers.host_bytes)).add(std::to_string(tiers.disk_bytes));
  name.add(tiers.directory).add(tiers.io_backend);
  return name.add(method.label())
      .add(flags_.own_prefill ? "own prefill" : "")
      .add(flags_.session.empty() ? "" : "session");
}

Result<const Json*> Evaluation::measured(const MeasurementName& name) {
  TL_TRY_ASSIGN(const Json* const row, rows_.find(name.text(), kept_));
  if (!row) return nullptr;
  const Json commit = row->value("commit", Json()), &now = of_all_rows_["commit"];
  if (commit != now)
    note_once("--resume " + flags_.resume + " has rows of commit " + commit.dump() +
              ", and what is measured now is of " + now.dump());
  return row;
}

Status Evaluation::keep(const MeasurementName& name, Json* row) {
  row->update(of_all_rows_);
  return rows_.add(name.text(), *row);
}

void Evaluation::note_once(const std::string& note) {
  if (std::find(noted_.begin(), noted_.end(), note) != noted_.end()) return;
  noted_.push_back(note);
  print_notes({&noted_.back(), 1});
}

}  // namespace thermocline
