#include "tools/thermocline/eval_tasks.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <optional>

#include "tools/thermocline/comparison.h"
#include "tools/thermocline/haystack.h"
#include "tools/thermocline/interval.h"
#include "tools/thermocline/passage.h"
#include "tools/thermocline/range.h"
#include "tools/thermocline/statistics.h"
#include "tools/thermocline/task.h"

namespace thermocline {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kLeastScore = 0.6;         // of full attention, for a method's to say anything
constexpr std::uint32_t kAnswerTokens = 8;  // more than any answer has
const ListedMethod kFull{"full attention", {}};

Result<std::vector<double>> parse_places(const std::string& text) {
  TL_TRY_ASSIGN(const std::vector<std::string> parts, parse_list(text, "--needle-depth"));
  std::vector<double> places;
  for (const std::string& part : parts) {
    double place = -1;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), place);
    if (error != std::errc{} || end != part.data() + part.size() || !(place >= 0 && place <= 1))
      return fail(ErrorCode::invalid_argument, "--needle-depth '", part,
                  "': shares of the text, from 0 to 1, as in 0.1,0.5,0.9");
    places.push_back(place);
  }
  return places;
}

// How one method did in a task at a depth.
struct Score {
  std::size_t right = 0;
  Json answers = Json::array();
  CacheReport cost;
  std::uint64_t held_bytes = 0;
  double step_ms = 0;
  std::uint64_t steps = 0;
};

class TaskEvaluation {
 public:
  TaskEvaluation(Evaluation& evaluation, std::vector<Task> tasks, std::vector<double> places,
                 std::vector<EvalText> texts)
      : flags_(evaluation.flags()),
        evaluation_(evaluation),
        tasks_(std::move(tasks)),
        places_(std::move(places)),
        texts_(std::move(texts)) {}

  Status run() {
    for (const Task task : tasks_)
      evaluation_.make_room("task", std::string(thermocline::name_of(task)));
    // What is wrong with any of it costs no reading.
    for (const Task task : tasks_)
      for (const std::uint32_t depth : evaluation_.plan().depths) {
        std::uint32_t longest = 0;
        for (std::uint32_t s = 0; s < flags_.samples; ++s) {
          TL_TRY_ASSIGN(const Question question, question_of(task, depth, s));
          longest = std::max(longest, question.positions());
        }
        for (const ListedMethod& method : evaluation_.plan().methods)
          TL_TRY(evaluation_.engine().plan(evaluation_.options_of(method, longest)));
      }
    for (const Task task : tasks_)
      for (const std::uint32_t depth : evaluation_.plan().depths) TL_TRY(measure(task, depth));
    return {};
  }

 private:
  struct Question {
    std::vector<int> before, asked;
    std::string answer;
    std::uint32_t positions() const {
      return static_cast<std::uint32_t>(before.size() + asked.size()) + kAnswerTokens;
    }
  };

  Result<Question> question_of(Task task, std::uint32_t depth, std::uint32_t number) const {
    if (depth == 0)
      return fail(ErrorCode::invalid_argument, "--tasks: say at which --depth, as in 2048,4096");
    const EvalText& text = texts_[number % texts_.size()];
    const TaskSample sample = make_sample(task, places_[number % places_.size()], number + 1);
    const auto of_text = static_cast<std::uint32_t>(number / texts_.size());
    Result<std::vector<int>> before =
        hide(evaluation_.engine(), sample, text.tokens, depth, of_text);
    if (!before) return fail(before.error().code, text.name, ": ", before.error().message);
    TL_TRY_ASSIGN(std::vector<int> asked,
                  evaluation_.engine().encode(sample.question, Engine::Special::as_text,
                                              Engine::Start::leave_out));
    Question question{std::move(*before), std::move(asked), sample.answer};
    if (question.positions() > evaluation_.context(text))
      return fail(ErrorCode::exhausted, "--depth ", depth, ": with the question and its answer ",
                  question.positions(), " positions, and the context has ",
                  evaluation_.context(text), " (-c)");
    return question;
  }

  Result<MeasurementName> name_of(Task task, std::uint32_t depth,
                                  const ListedMethod& method) const {
    const bool full = method.label() == kFull.label();
    TL_TRY_ASSIGN(MeasurementName name,
                  evaluation_.name_of(full ? ListedMethod{"exact", {}} : method));
    name.add(thermocline::name_of(task)).add(std::to_string(depth)).add(method.label());
    for (std::uint32_t s = 0; s < flags_.samples; ++s) {
      TL_TRY_ASSIGN(const Question question, question_of(task, depth, s));
      for (const int token : question.before) name.add(std::to_string(token));
      for (const int token : question.asked) name.add(std::to_string(token));
    }
    return name;
  }

  // All methods answer a sample while full attention's rows of it are there. Full attention may
  // turn out to be too weak on the way: then the rest is not asked.
  Status measure(Task task, std::uint32_t depth) {
    std::vector<ListedMethod> methods{kFull};
    methods.insert(methods.end(), evaluation_.plan().methods.begin(),
                   evaluation_.plan().methods.end());
    std::vector<MeasurementName> names;
    std::vector<const Json*> known;  // of an earlier run
    std::vector<std::optional<Score>> scores;
    bool all_there = true;
    for (const ListedMethod& method : methods) {
      TL_TRY_ASSIGN(const MeasurementName name, name_of(task, depth, method));
      names.push_back(name);
      TL_TRY_ASSIGN(const Json* const there, evaluation_.measured(name));
      known.push_back(there);
      all_there = all_there && there;
      scores.emplace_back();
      if (!there || method.label() == kFull.label()) scores.back().emplace();
    }
    // Too weak in an earlier run: no method was scored.
    const Json* full = known.front();
    bool weak = full && full->at("score").get<double>() < kLeastScore;
    if (!all_there && !weak) {
      TL_TRY(answer_all(task, depth, methods, &scores));
      weak = !strong_enough(scores.front()->right);
    }
    const double score_of_full = full ? full->at("score").get<double>()
                                      : static_cast<double>(scores.front()->right) / flags_.samples;
    for (std::size_t m = 0; m < methods.size(); ++m) {
      if (m > 0 && weak) continue;
      Json row;
      if (known[m]) {
        row = *known[m];
      } else {
        row = row_of(task, depth, methods[m], *scores[m], score_of_full);
        TL_TRY(evaluation_.keep(names[m], &row));
      }
      TL_TRY(evaluation_.show(row));
    }
    if (weak) note_weak(task, depth, score_of_full);
    return {};
  }

  bool strong_enough(std::size_t right) const {
    return static_cast<double>(right) >= kLeastScore * flags_.samples;
  }

  static void note_weak(Task task, std::uint32_t depth, double score) {
    char text[160];
    std::snprintf(text, sizeof text,
                  "%s at %u: full attention scores %.0f %%, under %.0f %%: no method is scored",
                  std::string(thermocline::name_of(task)).c_str(), depth, score * 100,
                  kLeastScore * 100);
    print_notes(std::array{std::string(text)});
  }

  Status answer_all(Task task, std::uint32_t depth, const std::vector<ListedMethod>& methods,
                    std::vector<std::optional<Score>>* scores) {
    Score& of_full = *scores->front();
    for (std::uint32_t s = 0; s < flags_.samples; ++s) {
      TL_TRY_ASSIGN(const Question question, question_of(task, depth, s));
      const std::string label = std::string(thermocline::name_of(task)) + " " +
                                std::to_string(s + 1) + " of " + std::to_string(flags_.samples);
      TL_TRY_ASSIGN(MeasuredRun full, evaluation_.open_full(question.positions(), label));
      TL_TRY(full.read(question.before));
      TL_TRY_ASSIGN(MeasuredRun beside, full.fork());
      TL_TRY(answer(question, &beside, &of_full));
      // With all that is left right, would it be strong enough?
      if (!strong_enough(of_full.right + flags_.samples - s - 1)) continue;
      for (std::size_t m = 1; m < methods.size(); ++m) {
        if (!(*scores)[m]) continue;
        TL_TRY_ASSIGN(MeasuredRun run, evaluation_.open_filled(methods[m], question.before,
                                                               question.positions(), label, full));
        TL_TRY(answer(question, &run, &*(*scores)[m]));
      }
    }
    return {};
  }

  // Question and answer are decoded: the method finds what it needs for both.
  Status answer(const Question& question, MeasuredRun* run, Score* score) {
    const CacheReport before = run->cache().report();
    const Engine& engine = evaluation_.engine();
    std::string text;
    const auto feed = [&](int token) {
      score->held_bytes += bytes_held(engine.layers(), run->timeline().length() + 1);
      ++score->steps;
      return run->step(token);
    };
    for (const int token : question.asked) TL_TRY(feed(token));
    std::vector<int> answered;
    while (answered.size() < kAnswerTokens) {
      const auto best = std::max_element(run->logits().begin(), run->logits().end());
      const auto token = static_cast<int>(best - run->logits().begin());
      if (engine.ends_generation(token)) break;
      answered.push_back(token);
      TL_TRY_ASSIGN(text, engine.decode(answered));
      if (text.find('\n') != std::string::npos) break;
      TL_TRY(feed(token));
    }
    score->right += is_right(text, question.answer) ? 1 : 0;
    score->answers.push_back(Json{question.answer, text});
    score->cost = sum(score->cost, difference(run->cache().report(), before));
    score->step_ms += run->step_ms();
    return {};
  }

  Json row_of(Task task, std::uint32_t depth, const ListedMethod& method, const Score& score,
              double score_of_full) const {
    const Interval interval = wilson(score.right, flags_.samples);
    const CacheReport& cost = score.cost;
    const std::uint64_t bytes = cost.device_bytes_read + cost.host_bytes_read +
                                cost.disk_bytes_read + cost.index_bytes_read;
    const double rate =
        score.step_ms > 0 ? static_cast<double>(score.steps) / score.step_ms * 1e3 : 0;
    return Json{{"task", thermocline::name_of(task)},
                {"depth", depth},
                {"method", method.label()},
                {"n", flags_.samples},
                {"score", static_cast<double>(score.right) / flags_.samples},
                {"score_low", interval.low},
                {"score_high", interval.high},
                {"score_full", score_of_full},
                {"read", share_of(bytes, score.held_bytes)},
                {"rows_read", share_of(cost.rows_read, cost.rows_held)},
                {"tokens_per_s", rate},
                {"answers", score.answers}};
  }

  const EvalFlags& flags_;
  Evaluation& evaluation_;
  std::vector<Task> tasks_;
  std::vector<double> places_;
  std::vector<EvalText> texts_;
};

}  // namespace

Status evaluate_tasks(const EvalFlags& flags, const EvalPlan& plan, Engine& engine) {
  TL_TRY_ASSIGN(std::vector<Task> tasks, parse_tasks(flags.tasks));
  TL_TRY_ASSIGN(std::vector<double> places, parse_places(flags.needle_depths));
  if (flags.samples == 0 || flags.samples > 10000)
    return fail(ErrorCode::invalid_argument, "--samples must be between 1 and 10000");
  TL_TRY_ASSIGN(Evaluation evaluation,
                Evaluation::open(flags, plan, engine,
                                 {"task", "depth", "method", "n", "score", "score_low",
                                  "score_high", "score_full", "read", "rows_read", "tokens_per_s"},
                                 {{"method"}, {"depth", "score"}, {}}));
  TL_TRY_ASSIGN(std::vector<EvalText> texts, evaluation.read_texts());
  return TaskEvaluation(evaluation, std::move(tasks), std::move(places), std::move(texts)).run();
}

}  // namespace thermocline
