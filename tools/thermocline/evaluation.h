// What eval is asked, parsed, and what all of its measurements share: methods and depths, full
// attention beside them, a table of rows of which an earlier run may have measured some.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/thermocline.h"
#include "tools/thermocline/flags.h"
#include "tools/thermocline/measured_rows.h"
#include "tools/thermocline/measured_run.h"
#include "tools/thermocline/method_list.h"
#include "tools/thermocline/passage.h"
#include "tools/thermocline/table.h"

namespace thermocline {

struct EvalFlags {
  ModelFlags model;
  TierFlags tiers;
  MethodFlags method;
  std::vector<std::string> methods{"sketch"}, texts;
  std::string session, depths = "0", format = "md", progress = "auto", resume;
  bool own_prefill = false;
  // Of texts
  std::uint32_t steps = 64;
  bool mass = false;
  std::string dump;
  // Of texts that are written freely
  std::uint32_t free = 0;
  float temperature = 0.8f;
  // Of tasks
  std::string tasks, needle_depths = "0.1,0.3,0.5,0.7,0.9";
  std::uint32_t samples = 20;
};

struct EvalPlan {
  std::vector<ListedMethod> methods;
  std::vector<std::uint32_t> depths;  // ascending; 0, as far as the text goes, last
  TierOptions tiers;
  TableFormat format{};
  ProgressStyle style{};
};
Result<EvalPlan> parse_eval_plan(const EvalFlags& flags);

class Evaluation {
 public:
  // All are borrowed. `columns` of the table that people are shown, `kept` of a row at least.
  static Result<Evaluation> open(const EvalFlags& flags, const EvalPlan& plan, Engine& engine,
                                 std::vector<std::string> columns, RowColumns kept);

  const EvalFlags& flags() const { return flags_; }
  const EvalPlan& plan() const { return plan_; }
  Engine& engine() const { return engine_; }
  // The texts that are named, or the session's.
  Result<std::vector<EvalText>> read_texts();
  std::uint32_t context(const EvalText& text) const;

  CacheOptions options_of(const ListedMethod& method, std::uint32_t positions) const;
  // Full attention with everything in memory, for texts of up to so many positions, or on what the
  // session holds, in its file: it can fork.
  Result<MeasuredRun> open_full(std::uint32_t positions, const std::string& text) const;
  // What has read `passage` and no more: *full, which is opened first where there is none.
  Status read_in_full(const Passage& passage, std::uint32_t positions,
                      std::optional<MeasuredRun>* full) const;
  // A run of the method that has read `tokens`, which `full` has. What full attention has read is
  // taken over, unless the method has to see the text being read; of a session it is, or it is an
  // error.
  Result<MeasuredRun> open_filled(const ListedMethod& method, std::span<const int> tokens,
                                  std::uint32_t positions, const std::string& text,
                                  const MeasuredRun& full);

  // What tells a measurement of this method from others, but for its text: all that its answers
  // and its times depend on.
  Result<MeasurementName> name_of(const ListedMethod& method) const;
  // The row that an earlier run has left, unless it is wanted `anew`; else what measure() gives, a
  // Result of a row, kept and with what is true of all rows. Either is shown. corrupt: what was
  // left is no row of this kind.
  template <typename Measure>
  Result<nlohmann::ordered_json> row_of(const MeasurementName& name, bool anew,
                                        const Measure& measure) {
    TL_TRY_ASSIGN(const nlohmann::ordered_json* const known, measured(name));
    nlohmann::ordered_json row;
    if (known && !anew) {
      row = *known;
    } else {
      TL_TRY_ASSIGN(row, measure());
      TL_TRY(keep(name, &row));
    }
    TL_TRY(show(row));
    return row;
  }
  // Null where no earlier run has measured it.
  Result<const nlohmann::ordered_json*> measured(const MeasurementName& name);
  Status keep(const MeasurementName& name, nlohmann::ordered_json* row);
  Status show(const nlohmann::ordered_json& row) { return table_->add(row); }
  // Room for this in a column, where the first row has less in it.
  void make_room(const std::string& column, const std::string& text) {
    table_->make_room(column, text);
  }

 private:
  Evaluation(const EvalFlags& flags, const EvalPlan& plan, Engine& engine, MeasuredRows rows,
             std::vector<std::string> columns, RowColumns kept);
  void note_once(const std::string& note);

  const EvalFlags& flags_;
  const EvalPlan& plan_;
  Engine& engine_;
  MeasuredRows rows_;
  RowColumns kept_;
  std::unique_ptr<Table> table_;
  std::vector<std::string> noted_;
  nlohmann::ordered_json of_all_rows_;
};

}  // namespace thermocline
