// What selectors find, and what that costs: recall of a query's hundred best keys over the share of
// the rows that are read, and over bytes, a curve a method, on keys and queries of a model that
// reads real texts (tests/support/asked_head.h).
//
//   index_bench MODEL LAYERS HEADS ROWS PROMPT SAMPLE QUERIES METHODS TEXT...
//
//   LAYERS, HEADS  lists such as 4,13,22: which of the model's
//   ROWS           keys: of ROWS / PROMPT prompts of PROMPT tokens each, cut from the texts
//   SAMPLE         of every so many positions the queries are shown to who watches
//   QUERIES        how many positions are asked of; their queries lie in the last sixteenth of a
//                  prompt, of which nothing is shown
//   METHODS        a list such as quest,sketch:select.bits=4:select.most_rows=0, of methods that
//                  have select.share and select.min_rows
//
// A method chooses for the query heads of a KV head together, beside no sinks and no tail, with
// budgets of 0.5 to 8 % of the rows. Printed, a line of JSON a budget, which tools/plot draws: the
// recall of a query head, the share of the rows that is read exactly, bytes of their keys and of
// what of the index was looked at, microseconds of one thread (the median); and what the method's
// index takes: seconds of all threads to form it, and bytes of index, summaries and codes for a
// row.
//
// Checked: recalls at the largest budget (kFloors).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "runtime/method.h"
#include "tests/support/asked_head.h"
#include "tests/unit/retrieval/sealed_keys.h"

namespace thermocline::test {
namespace {

constexpr double kBudgets[] = {0.005, 0.01, 0.02, 0.04, 0.08};

// At the largest budget, by select.by: the least recall, of what so many rows would have if they
// were best ones and no two query heads had the same. Keys' own scores miss some too: a row is
// ranked by what all query heads give it.
struct Floor {
  std::string_view by;
  double recall;
};
constexpr Floor kFloors[] = {{"flat", 0.99}, {"sketch", 0.97}, {"graph", 0.97}};

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<std::string> split(const std::string& list, char at) {
  std::vector<std::string> out;
  std::stringstream in(list);
  for (std::string one; std::getline(in, one, at);) out.push_back(one);
  return out;
}

// A method at each budget; what it keeps of rows is the same at all.
Result<std::vector<Method>> at_budgets(const std::string& named, const CpuTable& cpu) {
  std::vector<Method> methods;
  for (const double budget : kBudgets) {
    std::vector<std::string> settings = split(named, ':');
    settings.push_back("select.share=" + std::to_string(budget));
    settings.push_back("select.min_rows=1");
    settings.push_back("keys.balance=no");  // keys are traced as they are
    TL_TRY_ASSIGN(Method method, load_method(settings[0], "", std::span(settings).subspan(1), cpu));
    methods.push_back(std::move(method));
  }
  return methods;
}

// A KV head's rows as a selector formed them, in segments as a cache has them.
struct Formed {
  SealedRuns runs;
  std::vector<std::vector<std::uint32_t>> orders;  // [segment][stored row]; empty: as they were
  std::uint64_t bytes = 0;
};

Result<Formed> form(const Selector& selector, const AskedHead& of, const Workers& workers) {
  const LayerQueries& layer = *of.layer;
  Formed made;
  for (std::uint32_t first = 0; first < layer.rows; first += kSegmentRows) {
    const std::uint32_t count = std::min(kSegmentRows, layer.rows - first);
    Sealing sealing{LayerId{layer.layer}, layer.shape, layer.rows_of(of.head).part(first, count)};
    std::vector<float> shown;
    if (selector.facts().watches == Watched::queries) shown = of.shown(first, first + count);
    sealing.queries =
        static_cast<std::uint32_t>(shown.size() / layer.shape.heads / layer.shape.key_dim);
    sealing.query = shown.data();
    TL_TRY_ASSIGN(const Formation formation, selector.form(sealing, workers));
    made.runs.add(sealing, formation);
    made.orders.push_back(formation.order);
    made.bytes += (formation.index ? formation.index->bytes() : 0) + formation.summary_rows.size() +
                  formation.code_rows.size();
  }
  return made;
}

// The rows that a list reads exactly, as they were before a selector ordered them; ascending.
std::vector<std::uint32_t> rows_read(const Formed& formed, const ReadList& list) {
  std::vector<std::uint32_t> rows;
  const auto read = [&](std::uint32_t run, std::uint32_t stored) {
    const std::vector<std::uint32_t>& order = formed.orders[run];
    rows.push_back(run * kSegmentRows + (order.empty() ? stored : order[stored]));
  };
  for (const Read& of : list.reads) {
    if (of.form != Form::rows) continue;
    for (std::uint32_t r = 0; of.everything && r < formed.runs.runs()[of.run].rows->rows; ++r)
      read(of.run, r);
    for (std::uint32_t p = of.first; !of.everything && p < of.last; ++p)
      for (std::uint32_t bit = 0; bit < kBlockRows; ++bit)
        if (list.picks[p].rows >> bit & 1) read(of.run, list.picks[p].block * kBlockRows + bit);
  }
  std::sort(rows.begin(), rows.end());
  return rows;
}

double share_of(const std::vector<std::uint32_t>& best, const std::vector<std::uint32_t>& rows) {
  std::vector<std::uint32_t> both;
  std::set_intersection(best.begin(), best.end(), rows.begin(), rows.end(),
                        std::back_inserter(both));
  return static_cast<double>(both.size()) / static_cast<double>(best.size());
}

// What a method did at one budget, summed over the queries.
struct Point {
  double recall = 0, rows = 0, bytes = 0;
  std::vector<double> microseconds;  // of each
};

Status ask(Selector* selector, const AskedHead& of, const Formed& formed, const Workers& alone,
           Point* point) {
  const LayerQueries& layer = *of.layer;
  const std::size_t heads = layer.shape.heads;
  std::vector<ReadList> read(1);
  for (std::size_t q = 0; q < of.asked.size(); ++q) {
    const ListQuery list{0, layer.rows, of.query(q), {}, 0, formed.runs.runs()};
    const double start = seconds();
    TL_TRY_ASSIGN(const Chosen chosen,
                  selector->choose({LayerId{layer.layer}, layer.shape, {&list, 1}}, alone, read));
    point->microseconds.push_back((seconds() - start) * 1e6);
    const std::vector<std::uint32_t> rows = rows_read(formed, read[0]);
    for (std::size_t h = 0; h < heads; ++h)
      point->recall += share_of(of.best[q * heads + h], rows) / static_cast<double>(heads);
    point->rows += static_cast<double>(rows.size());
    point->bytes +=
        static_cast<double>(rows.size() * layer.shape.key_dim * sizeof(f16) + chosen.index_bytes);
  }
  return {};
}

// A line for each budget, and whether the last one is above its floor.
bool print(const std::string& name, std::string_view by, const AskedHeads& asked,
           std::span<Point> points, double form_seconds, double index_bytes) {
  const LayerQueries& layer = asked.layers[0];
  double found = 0, possible = 0;
  for (std::size_t b = 0; b < points.size(); ++b) {
    Point& point = points[b];
    const auto queries = static_cast<double>(point.microseconds.size());
    const double rows = point.rows / queries;
    std::sort(point.microseconds.begin(), point.microseconds.end());
    const nlohmann::ordered_json line = {
        {"method", name},
        {"keys", layer.rows},
        {"budget", kBudgets[b]},
        {"recall", point.recall / queries},
        {"rows_read", rows / layer.rows},
        {"bytes", point.bytes / queries},
        {"choose_us", point.microseconds[point.microseconds.size() / 2]},
        {"form_s", form_seconds},
        {"index_bytes_a_row", index_bytes}};
    std::printf("%s\n", line.dump().c_str());
    found = point.recall / queries;
    possible = std::min(1.0, rows / AskedHead::kBest / layer.shape.heads);
  }
  std::fflush(stdout);
  const auto* floor = std::find_if(std::begin(kFloors), std::end(kFloors),
                                   [&](const Floor& one) { return one.by == by; });
  if (floor == std::end(kFloors) || found >= floor->recall * possible) return true;
  std::fprintf(stderr, "index_bench: %s found %.3f, which is less than %.2f of %.3f\n",
               name.c_str(), found, floor->recall, possible);
  return false;
}

// One method's curve. False: it is below its floor.
Result<bool> curve(const std::string& name, const AskedHeads& asked, const CpuTable& cpu,
                   const Workers& workers) {
  TL_TRY_ASSIGN(const std::vector<Method> methods, at_budgets(name, cpu));
  const Workers alone(1);
  std::vector<Point> points(methods.size());
  double form_seconds = 0, bytes = 0;
  for (const AskedHead& of : asked.heads) {
    const double start = seconds();
    TL_TRY_ASSIGN(const Formed formed, form(*methods[0].select, of, workers));
    form_seconds += seconds() - start;
    bytes += static_cast<double>(formed.bytes);
    for (std::size_t b = 0; b < methods.size(); ++b)
      TL_TRY(ask(methods[b].select.get(), of, formed, alone, &points[b]));
  }
  const auto heads = static_cast<double>(asked.heads.size());
  return print(name, methods[0].select->name(), asked, points, form_seconds / heads,
               bytes / heads / asked.layers[0].rows);
}

int run(std::span<const char* const> arguments) {
  constexpr int kMethods = AskedHeadOptions::kArguments;
  if (arguments.size() < kMethods + 2) {
    std::fprintf(stderr, "index_bench %s METHODS TEXT...\n", AskedHeadOptions::kUsage);
    return 2;
  }
  const Workers workers;
  const CpuTable& cpu = **choose_cpu_table("auto");
  const auto asked =
      ask_heads(AskedHeadOptions::of(arguments.first(kMethods), arguments.subspan(kMethods + 1)),
                cpu, workers);
  if (!asked) {
    std::fprintf(stderr, "index_bench: %s\n", asked.error().message.c_str());
    return 1;
  }
  bool right = true;
  for (const std::string& name : split(arguments[kMethods], ',')) {
    const auto above = curve(name, *asked, cpu, workers);
    if (!above) std::fprintf(stderr, "index_bench: %s\n", above.error().message.c_str());
    // A build may lack what a method needs.
    right = right && (above ? *above : above.error().code == ErrorCode::unsupported);
  }
  return right ? 0 : 1;
}

}  // namespace
}  // namespace thermocline::test

int main(int argc, char** argv) {
  return thermocline::test::run({argv + 1, static_cast<std::size_t>(argc - 1)});
}
