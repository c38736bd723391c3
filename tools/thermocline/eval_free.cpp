#include "tools/thermocline/eval_free.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "tools/thermocline/comparison.h"
#include "tools/thermocline/interval.h"
#include "tools/thermocline/spread.h"
#include "tools/thermocline/statistics.h"

namespace thermocline {
namespace {

using Json = nlohmann::ordered_json;

// A writer: full attention with one of two seeds, or a method with the first of them.
struct Writer {
  ListedMethod method;  // exact, for full attention
  std::string label;
  std::uint64_t seed = 1;
  bool is_full = false;
};

std::vector<Writer> writers_of(const std::vector<ListedMethod>& methods) {
  std::vector<Writer> writers;
  for (const std::uint64_t seed : {1u, 2u})
    writers.push_back({{"exact", {}}, "full attention, seed " + std::to_string(seed), seed, true});
  for (const ListedMethod& method : methods) writers.push_back({method, method.label(), 1, false});
  return writers;
}

class FreeEvaluation {
 public:
  FreeEvaluation(Evaluation& evaluation, std::vector<EvalText> texts)
      : flags_(evaluation.flags()),
        evaluation_(evaluation),
        texts_(std::move(texts)),
        writers_(writers_of(evaluation.plan().methods)),
        rows_(writers_.size()) {
    const Engine& engine = evaluation.engine();
    for (std::uint32_t t = 0; t < engine.model().vocabulary; ++t)
      if (engine.ends_generation(static_cast<int>(t))) ends_.push_back(t);
  }

  Status run() {
    // What is wrong with any of it costs no reading.
    for (const EvalText& text : texts_) {
      TL_TRY_ASSIGN(const std::vector<Passage> passages, passages_of(text));
      for (const Passage& passage : passages)
        for (const Writer& writer : writers_)
          if (!writer.is_full)
            TL_TRY(evaluation_.engine().plan(
                evaluation_.options_of(writer.method, passage.depth + passage.steps)));
    }
    for (const EvalText& text : texts_) TL_TRY(measure(text));
    if (rows_.front().size() > 1)
      for (const std::vector<Json>& rows : rows_) TL_TRY(evaluation_.show(row_of_all(rows)));
    return {};
  }

 private:
  // The text's next token is fed, and as many are written.
  Result<std::vector<Passage>> passages_of(const EvalText& text) const {
    std::vector<Passage> passages;
    for (const std::uint32_t depth : evaluation_.plan().depths) {
      TL_TRY_ASSIGN(Passage passage, cut_passage(text, depth, 1, evaluation_.context(text),
                                                 "--free " + std::to_string(flags_.free)));
      passage.steps = flags_.free;
      if (const std::uint64_t positions = std::uint64_t{passage.depth} + passage.steps;
          positions > evaluation_.context(text))
        return fail(ErrorCode::exhausted, text.name, ": --free ", flags_.free, " after ",
                    passage.depth, " tokens takes ", positions, " positions, and the context has ",
                    evaluation_.context(text), " (-c)",
                    flags_.session.empty() ? ": say a smaller --depth" : "");
      passages.push_back(passage);
    }
    return passages;
  }

  Result<MeasurementName> name_of(const Passage& passage, const Writer& writer) const {
    TL_TRY_ASSIGN(MeasurementName name, evaluation_.name_of(writer.method));
    name.add(writer.label).add(passage.text->name).add(std::to_string(passage.depth));
    for (std::size_t i = 0; i <= passage.depth; ++i)
      name.add(std::to_string(passage.text->tokens[i]));
    return name.add("free")
        .add(std::to_string(passage.steps))
        .add(std::to_string(flags_.temperature));
  }

  Status measure(const EvalText& text) {
    TL_TRY_ASSIGN(const std::vector<Passage> passages, passages_of(text));
    std::optional<MeasuredRun> full;
    const std::uint32_t longest = std::max(text.held, passages.back().depth + flags_.free);
    for (const Passage& passage : passages) {
      std::vector<int> reference;
      for (std::size_t w = 0; w < writers_.size(); ++w) {
        TL_TRY_ASSIGN(const MeasurementName name, name_of(passage, writers_[w]));
        const auto anew = [&]() -> Result<Json> {
          TL_TRY(evaluation_.read_in_full(passage, longest, &full));
          return write(passage, writers_[w], *full, reference);
        };
        TL_TRY_ASSIGN(Json row, evaluation_.row_of(name, false, anew));
        if (w == 0) reference = row.at("written").get<std::vector<int>>();
        rows_[w].push_back(std::move(row));
      }
    }
    return {};
  }

  // Full attention reads what is written, and says how likely each token of it was. `reference` is
  // what it wrote itself; nothing: that is being written.
  Result<Json> write(const Passage& passage, const Writer& writer, const MeasuredRun& full,
                     const std::vector<int>& reference) {
    TL_TRY_ASSIGN(MeasuredRun judge, full.fork());
    std::optional<MeasuredRun> own;
    if (!writer.is_full) {
      TL_TRY_ASSIGN(MeasuredRun run, evaluation_.open_filled(writer.method, passage.read(),
                                                             passage.depth + passage.steps,
                                                             passage.text->name, full));
      own.emplace(std::move(run));
    }
    MeasuredRun& run = own ? *own : judge;
    SamplingOptions sampling;
    sampling.temperature = flags_.temperature;
    sampling.seed = writer.seed;
    Sampler sampler(sampling);
    std::vector<int> written;
    std::vector<float> allowed(run.logits().size());
    double nll = 0, divergence = 0;
    Progress progress(evaluation_.plan().style, run.label(), passage.steps);
    for (int token = passage.token(0); written.size() < passage.steps;) {
      TL_TRY(run.step(token));
      if (own) TL_TRY(judge.step(token));
      allowed.assign(run.logits().begin(), run.logits().end());
      for (const std::uint32_t end : ends_) allowed[end] = -std::numeric_limits<float>::infinity();
      token = sampler.sample(allowed);
      sampler.accept(token);
      written.push_back(token);
      const StepFidelity step = compare_logits(judge.logits(), run.logits(), token);
      nll += step.full_nll;
      divergence += step.divergence;
      progress.update(written.size());
    }
    const auto count = static_cast<double>(written.size());
    const std::vector<int>& beside = reference.empty() ? written : reference;
    const auto differs =
        std::mismatch(written.begin(), written.end(), beside.begin(), beside.end()).first;
    return Json{{"text", passage.text->name},
                {"depth", passage.depth},
                {"method", writer.label},
                {"tokens", written.size()},
                {"same", differs - written.begin()},
                {"kl_mean", divergence / count},
                {"nll_full", nll / count},
                {"ppl_full", std::exp(nll / count)},
                {"tokens_per_s", count / run.step_ms() * 1e3},
                {"written", written}};
  }

  // The same writer after several prompts, which are what its texts are independent by.
  static Json row_of_all(const std::vector<Json>& rows) {
    const auto values = [&](const char* name) {
      std::vector<double> of;
      for (const Json& row : rows) of.push_back(row.at(name).get<double>());
      return of;
    };
    const std::vector<double> same = values("same"), nll = values("nll_full");
    const Interval interval = bootstrap_of_mean(nll);
    return Json{{"text", "all " + std::to_string(rows.size())},
                {"method", rows.front().at("method")},
                {"tokens", mean_of(values("tokens"))},
                {"same", percentile(same, 0.5)},
                {"same_q1", percentile(same, 0.25)},
                {"same_q3", percentile(same, 0.75)},
                {"kl_mean", mean_of(values("kl_mean"))},
                {"nll_full", mean_of(nll)},
                {"ppl_full", std::exp(mean_of(nll))},
                {"ppl_low", std::exp(interval.low)},
                {"ppl_high", std::exp(interval.high)},
                {"tokens_per_s", mean_of(values("tokens_per_s"))}};
  }

  const EvalFlags& flags_;
  Evaluation& evaluation_;
  std::vector<EvalText> texts_;
  std::vector<Writer> writers_;
  std::vector<std::vector<Json>> rows_;  // of each writer
  std::vector<std::uint32_t> ends_;      // tokens that are not drawn: the text is to go on
};

}  // namespace

Status evaluate_free(const EvalFlags& flags, const EvalPlan& plan, Engine& engine) {
  TL_TRY_ASSIGN(
      Evaluation evaluation,
      Evaluation::open(flags, plan, engine,
                       {"text", "depth", "method", "tokens", "same", "same_q1", "same_q3",
                        "kl_mean", "ppl_full", "ppl_low", "ppl_high", "tokens_per_s"},
                       {{"text", "method"},
                        {"depth", "tokens", "same", "kl_mean", "nll_full", "tokens_per_s"},
                        {"written"}}));
  TL_TRY_ASSIGN(std::vector<EvalText> texts, evaluation.read_texts());
  return FreeEvaluation(evaluation, std::move(texts)).run();
}

}  // namespace thermocline
