#include "tools/thermocline/eval_texts.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>

#include "tools/thermocline/attention_mass.h"
#include "tools/thermocline/attention_record.h"
#include "tools/thermocline/comparison.h"
#include "tools/thermocline/fidelity_row.h"
#include "tools/thermocline/statistics.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// What --mass and --dump see of a method's steps.
class Study final : public AttendObserver {
 public:
  Study(const EvalFlags& flags, std::span<const LayerSpec> layers, const KeyTable& keys) {
    if (flags.mass) mass_.emplace(layers, keys);
    if (!flags.dump.empty()) record_.emplace(layers);
  }
  void attended(const AttendedList& list) override {
    if (mass_) mass_->attended(list);
    if (record_) record_->attended(list);
  }
  const std::optional<AttentionMass>& mass() const { return mass_; }
  const std::optional<AttentionRecord>& record() const { return record_; }

 private:
  std::optional<AttentionMass> mass_;
  std::optional<AttentionRecord> record_;
};

class TextEvaluation {
 public:
  TextEvaluation(Evaluation& evaluation, std::vector<EvalText> texts)
      : flags_(evaluation.flags()),
        methods_(evaluation.plan().methods),
        evaluation_(evaluation),
        texts_(std::move(texts)),
        by_setting_(evaluation.plan().depths.size() * methods_.size()) {}

  Status run() {
    // What is wrong with any of it costs no reading.
    for (const EvalText& text : texts_) {
      TL_TRY_ASSIGN(const std::vector<Passage> passages, passages_of(text));
      for (const Passage& passage : passages)
        for (const ListedMethod& method : methods_)
          TL_TRY(evaluation_.engine().plan(
              evaluation_.options_of(method, passage.depth + passage.steps)));
    }
    TL_TRY(check_dump());
    evaluation_.make_room("text", mean_title(texts_.size()));
    for (const EvalText& text : texts_) TL_TRY(measure(text));
    if (texts_.size() > 1)
      for (const std::vector<Json>& rows : by_setting_) TL_TRY(evaluation_.show(mean_row(rows)));
    return {};
  }

 private:
  bool studies() const { return flags_.mass || !flags_.dump.empty(); }

  Result<std::vector<Passage>> passages_of(const EvalText& text) const {
    std::vector<Passage> passages;
    for (const std::uint32_t depth : evaluation_.plan().depths) {
      TL_TRY_ASSIGN(const Passage passage,
                    cut_passage(text, depth, flags_.steps, evaluation_.context(text),
                                "--steps " + std::to_string(flags_.steps)));
      passages.push_back(passage);
    }
    return passages;
  }

  Status check_dump() const {
    if (flags_.dump.empty()) return {};
    std::set<std::string> names;
    for (const EvalText& text : texts_)
      if (!names.insert(folder_name(text.name)).second)
        return fail(ErrorCode::invalid_argument, "--dump: two texts would have the folder ",
                    folder_name(text.name), ": give them names that differ");
    std::error_code error;
    fs::create_directories(flags_.dump, error);
    if (error || ::access(flags_.dump.c_str(), W_OK | X_OK) != 0)
      return fail(ErrorCode::io, "--dump ", flags_.dump,
                  " cannot be written to: ", error ? error.message() : std::strerror(errno),
                  "; name a new folder");
    if (flags_.resume.empty() && !fs::is_empty(flags_.dump, error))
      return fail(ErrorCode::invalid_argument, "--dump ", flags_.dump,
                  " is there and not empty: name a new folder");
    return {};
  }

  fs::path folder_of(const Passage& passage, const std::string& what) const {
    return fs::path(flags_.dump) /
           (folder_name(passage.text->name) + "-" + std::to_string(passage.depth)) /
           folder_name(what);
  }

  Result<MeasurementName> name_of(const Passage& passage, const ListedMethod& method) const {
    TL_TRY_ASSIGN(MeasurementName name, evaluation_.name_of(method));
    name.add(passage.text->name).add(std::to_string(passage.depth));
    for (std::size_t i = 0; i <= std::size_t{passage.depth} + passage.steps; ++i)
      name.add(std::to_string(passage.text->tokens[i]));
    // A watched step takes longer.
    return name.add(std::to_string(passage.steps))
        .add(flags_.mass ? "mass" : "")
        .add(flags_.dump.empty() ? "" : "dump");
  }

  // Whether an earlier run has left what is to be dumped.
  bool is_dumped(const Passage& passage, const ListedMethod& method) const {
    std::error_code ignored;
    return flags_.dump.empty() || fs::exists(folder_of(passage, method.label()), ignored);
  }

  // Full attention reads the text once: all depths and methods are held against that.
  Status measure(const EvalText& text) {
    TL_TRY_ASSIGN(const std::vector<Passage> passages, passages_of(text));
    std::optional<MeasuredRun> full;
    std::uint32_t longest = text.held;
    for (const Passage& passage : passages)
      longest = std::max(longest, passage.depth + passage.steps);
    for (std::size_t d = 0; d < passages.size(); ++d) {
      const Passage& passage = passages[d];
      KeyTable keys(evaluation_.engine().layers());
      for (std::size_t m = 0; m < methods_.size(); ++m) {
        TL_TRY_ASSIGN(const MeasurementName name, name_of(passage, methods_[m]));
        const auto anew = [&]() -> Result<Json> {
          TL_TRY(evaluation_.read_in_full(passage, longest, &full));
          return measure(passage, methods_[m], *full, &keys);
        };
        TL_TRY_ASSIGN(Json row, evaluation_.row_of(name, !is_dumped(passage, methods_[m]), anew));
        by_setting_[d * methods_.size() + m].push_back(std::move(row));
      }
    }
    return {};
  }

  Result<Json> measure(const Passage& passage, const ListedMethod& method, const MeasuredRun& full,
                       KeyTable* keys) {
    TL_TRY_ASSIGN(MeasuredRun run,
                  evaluation_.open_filled(method, passage.read(), passage.depth + passage.steps,
                                          passage.text->name, full));
    TL_TRY_ASSIGN(MeasuredRun beside, full.fork());
    Study study(flags_, evaluation_.engine().layers(), *keys);
    if (studies()) {
      keys->cut(passage.depth);
      run.cache().observe(&study);
    }
    TL_TRY_ASSIGN(const Comparison comparison,
                  compare(passage, evaluation_.engine().layers(), &beside, &run,
                          evaluation_.plan().style, studies() ? keys : nullptr));
    Json row = fidelity_row(passage, method.label(), comparison);
    if (study.mass()) add_mass(*study.mass(), &row);
    // A watched step takes longer.
    if (studies()) row["tokens_per_s"] = row["tokens_per_s_full"] = nullptr;
    if (study.record()) TL_TRY(dump(passage, method, *study.record(), *keys, row));
    return row;
  }

  static void add_mass(const AttentionMass& mass, Json* row) {
    Json by_layer = Json::array();
    for (const std::optional<double>& share : mass.by_layer())
      by_layer.push_back(share ? Json(*share) : Json());
    (*row)["mass_by_layer"] = by_layer;
    set_mass(row);
  }

  Status dump(const Passage& passage, const ListedMethod& method, const AttentionRecord& record,
              const KeyTable& keys, const Json& row) const {
    std::error_code ignored;
    if (const fs::path place = folder_of(passage, "keys"); !fs::exists(place, ignored)) {
      TL_TRY_ASSIGN(NewFolder folder, NewFolder::create(place));
      TL_TRY(write_keys(keys, evaluation_.engine().layers(), folder));
      TL_TRY(folder.publish());
    }
    TL_TRY_ASSIGN(NewFolder folder, NewFolder::create(folder_of(passage, method.label())));
    TL_TRY(record.write(folder));
    TL_TRY(write_new_file(folder.file("about.json"), {json_text(about(passage, row))}));
    return folder.publish();
  }

  Json about(const Passage& passage, const Json& row) const {
    Json layers = Json::array();
    for (const LayerSpec& layer : evaluation_.engine().layers())
      layers.push_back(Json{{"query_heads", layer.q_heads},
                            {"kv_heads", layer.kv_heads},
                            {"key_dim", layer.key_dim},
                            {"window", layer.window}});
    return Json{
        {"schema", "thermocline/dump/1"},
        {"files",
         {{"queries_N.npy",
           "f32 [steps][query heads][key_dim] of layer N: rotated and scaled, the method's own"},
          {"positions_N.npy",
           "u32: positions whose exact rows a step read, ascending, list after list"},
          {"ends_N.npy", "u64 [steps][KV heads]: where each list ends in positions_N.npy"},
          {"coded_N.npy, coded_ends_N.npy",
           "the same of rows attended by their codes, where any are"},
          {"../keys/keys_N.npy",
           "f16 [KV heads][positions][key_dim]: rotated, full attention's; step s is position "
           "depth + s"}}},
        {"note", "layers with a window attend all of it: they have no files"},
        {"depth", passage.depth},
        {"steps", passage.steps},
        {"tokens",
         std::vector<int>(passage.text->tokens.begin(),
                          passage.text->tokens.begin() + passage.depth + passage.steps + 1)},
        {"layers", layers},
        {"row", row}};
  }

  const EvalFlags& flags_;
  const std::vector<ListedMethod>& methods_;
  Evaluation& evaluation_;
  std::vector<EvalText> texts_;
  std::vector<std::vector<Json>> by_setting_;  // [depth][method]: a row a text
};

}  // namespace

Status evaluate_texts(const EvalFlags& flags, const EvalPlan& plan, Engine& engine) {
  if (flags.steps == 0 || flags.steps > 1000000)
    return fail(ErrorCode::invalid_argument, "--steps must be between 1 and 1000000");
  std::vector<std::string> columns = fidelity_columns();
  if (flags.mass) columns.insert(columns.end(), {"mass", "mass_lowest", "lowest_layer"});
  TL_TRY_ASSIGN(Evaluation evaluation,
                Evaluation::open(flags, plan, engine, columns, fidelity_row_columns()));
  TL_TRY_ASSIGN(std::vector<EvalText> texts, evaluation.read_texts());
  return TextEvaluation(evaluation, std::move(texts)).run();
}

}  // namespace thermocline
