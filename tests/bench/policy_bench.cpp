// How many rows a row cache misses, by policy, by size and by what it holds at first: replayed on
// what `sketch` picks while a model decodes real texts (tests/support/selection_trace.h). And how
// much of a selection a guessed query names.
//
//   policy_bench MODEL CONTEXT STEPS TEXT...     (CONTEXT 0: as much of each text as leaves STEPS)
//
// Checked: nothing misses less than the optimum that knows the future, from the same start.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/selection_trace.h"
#include "tiers/row_cache.h"

namespace thermocline::test {
namespace {

constexpr std::uint32_t kPrompt = 64;     // prompt positions that are traced
constexpr std::uint32_t kNear = 16;       // those whose picks fill a cache
constexpr std::uint32_t kFirstSteps = 8;  // that are counted apart: what a start is worth

enum class Start { cold, first_rows, prompt };
enum class Policy { lru, frequency_8, frequency_32, mass_16, fixed, optimal };
struct PolicyLine {
  Policy policy;
  std::string_view name;
  // What a study of the same four passages missed of 139 picked rows with 5, 10 and 20 % of the
  // rows cached, filled by the prompt's attention and after 192 steps.
  double expected[3];
};
constexpr PolicyLine kPolicies[] = {
    {Policy::lru, "LRU by step (ours)", {24.5, 11.5, 4.5}},
    {Policy::frequency_8, "frequency, half-life 8", {22.7, 10.7, 4.3}},
    {Policy::frequency_32, "frequency, half-life 32", {26.2, 10.8, 4.0}},
    {Policy::mass_16, "decayed mass, half-life 16", {25.0, 10.4, 3.8}},
    {Policy::fixed, "what it holds at first", {46.2, 24.7, 9.8}},
    {Policy::optimal, "optimal, knows the future", {13.1, 5.6, 2.1}}};
constexpr std::pair<Start, std::string_view> kStarts[] = {
    {Start::cold, "empty"}, {Start::first_rows, "first rows"}, {Start::prompt, "prompt's picks"}};

struct Sum {  // of missed rows
  double all = 0, first = 0;
  void add(std::size_t missed, std::size_t step) {
    all += static_cast<double>(missed);
    if (step < kFirstSteps) first += static_cast<double>(missed);
  }
  Sum& operator+=(const Sum& other) {
    all += other.all;
    first += other.first;
    return *this;
  }
};

// How often the last `queries` of the prompt, each `apart` from the next, picked each row.
std::vector<double> picks_of_prompt(const HeadTrace& head, std::uint32_t rows,
                                    std::uint32_t queries, std::uint32_t apart) {
  std::vector<double> count(rows);
  const std::size_t n = head.prompt.size();
  for (std::size_t q = 0; q < queries && q * apart < n; ++q)
    for (const std::uint32_t row : head.prompt[n - 1 - q * apart].picked) count[row] += 1.0;
  return count;
}

// The `most` best rows that are above nothing, the best first.
std::vector<std::uint32_t> best(const std::vector<double>& score, std::size_t most) {
  std::vector<std::uint32_t> order;
  for (std::uint32_t r = 0; r < score.size(); ++r)
    if (score[r] > 0) order.push_back(r);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return score[a] > score[b]; });
  order.resize(std::min(order.size(), most));
  return order;
}

// Rows to begin with, the most valued first.
std::vector<std::uint32_t> rows_at_start(Start start, const std::vector<double>& prompt,
                                         std::uint32_t capacity) {
  if (start == Start::cold) return {};
  std::vector<std::uint32_t> rows;
  std::vector<bool> held(prompt.size());
  if (start == Start::prompt) rows = best(prompt, capacity);
  for (const std::uint32_t row : rows) held[row] = true;
  for (std::uint32_t row = 0; row < prompt.size() && rows.size() < capacity; ++row)
    if (!held[row]) rows.push_back(row);
  return rows;
}

// The cache that we have. `missed`, where given, takes the rows that each step misses.
Sum run_lru(const HeadTrace& head, std::uint32_t rows, std::uint32_t capacity,
            std::span<const std::uint32_t> start,
            std::vector<std::vector<std::uint32_t>>* missed = nullptr) {
  std::vector<std::byte> bytes(capacity);
  RowCache cache(bytes.data(), capacity, 1);
  cache.grow(rows);
  for (auto row = start.rbegin(); row != start.rend(); ++row) cache.insert(*row);
  Sum sum;
  std::vector<std::uint32_t> to_read;
  for (std::size_t t = 0; t < head.steps.size(); ++t) {
    cache.begin_step();
    to_read.clear();
    for (const std::uint32_t row : head.steps[t].picked)
      if (!cache.find(row)) to_read.push_back(row);
    for (const std::uint32_t row : to_read) cache.insert(row);
    sum.add(to_read.size(), t);
    if (missed) missed->push_back(to_read);
  }
  return sum;
}

// Policies that value rows: after each step the best of what the cache holds and of what was read
// stay. `value(t, row)` is asked once step t has been learnt.
template <typename Learn, typename Value>
Sum run_valued(const HeadTrace& head, std::uint32_t rows, std::uint32_t capacity,
               std::span<const std::uint32_t> start, const Learn& learn, const Value& value) {
  std::vector<bool> held(rows);
  std::vector<std::uint32_t> in(start.begin(), start.end());
  for (const std::uint32_t row : in) held[row] = true;
  Sum sum;
  for (std::size_t t = 0; t < head.steps.size(); ++t) {
    std::size_t missed = 0;
    for (const std::uint32_t row : head.steps[t].picked)
      if (!held[row]) {
        ++missed;
        held[row] = true;
        in.push_back(row);
      }
    sum.add(missed, t);
    learn(t);
    if (in.size() <= capacity) continue;
    const auto end = in.begin() + static_cast<std::ptrdiff_t>(capacity);
    std::nth_element(in.begin(), end, in.end(), [&](auto a, auto b) {
      const double of_a = value(t, a), of_b = value(t, b);
      return of_a != of_b ? of_a > of_b : a < b;
    });
    for (auto out = end; out != in.end(); ++out) held[*out] = false;
    in.erase(end, in.end());
  }
  return sum;
}

Sum run_frequency(const HeadTrace& head, std::uint32_t rows, std::uint32_t capacity,
                  std::span<const std::uint32_t> start, double half_life) {
  const double decay = std::exp2(-1.0 / half_life);
  std::vector<double> score(rows);
  const auto learn = [&](const HeadTrace::Step& step) {
    for (double& s : score) s *= decay;
    for (const std::uint32_t row : step.picked) score[row] += 1.0;
  };
  if (!start.empty())
    for (const HeadTrace::Step& step : head.prompt) learn(step);
  return run_valued(
      head, rows, capacity, start, [&](std::size_t t) { learn(head.steps[t]); },
      [&](std::size_t, std::uint32_t row) { return score[row]; });
}

Sum run_mass(const HeadTrace& head, std::uint32_t rows, std::uint32_t capacity,
             std::span<const std::uint32_t> start, const std::vector<double>& prompt,
             double half_life) {
  const double decay = std::exp2(-1.0 / half_life);
  // Picks count as the mass that an average pick has.
  double mean = 0, picks = 0;
  for (const HeadTrace::Step& step : head.steps) {
    mean += std::accumulate(step.mass.begin(), step.mass.end(), 0.0);
    picks += static_cast<double>(step.picked.size());
  }
  std::vector<double> score(rows);
  if (!start.empty())
    for (std::uint32_t r = 0; r < rows; ++r) score[r] = prompt[r] * mean / picks;
  return run_valued(
      head, rows, capacity, start,
      [&](std::size_t t) {
        const HeadTrace::Step& step = head.steps[t];
        for (double& s : score) s *= decay;
        for (std::size_t i = 0; i < step.heaviest.size(); ++i)
          score[step.heaviest[i]] += static_cast<double>(step.mass[i]);
      },
      [&](std::size_t, std::uint32_t row) { return score[row]; });
}

Sum run_fixed(const HeadTrace& head, std::uint32_t rows, std::span<const std::uint32_t> start) {
  std::vector<bool> held(rows);
  for (const std::uint32_t row : start) held[row] = true;
  Sum sum;
  for (std::size_t t = 0; t < head.steps.size(); ++t)
    sum.add(static_cast<std::size_t>(std::count_if(head.steps[t].picked.begin(),
                                                   head.steps[t].picked.end(),
                                                   [&](auto row) { return !held[row]; })),
            t);
  return sum;
}

Sum run_optimal(const HeadTrace& head, std::uint32_t rows, std::uint32_t capacity,
                std::span<const std::uint32_t> start) {
  std::vector<std::vector<std::size_t>> uses(rows);
  for (std::size_t t = 0; t < head.steps.size(); ++t)
    for (const std::uint32_t row : head.steps[t].picked) uses[row].push_back(t);
  return run_valued(
      head, rows, capacity, start, [](std::size_t) {},
      [&](std::size_t t, std::uint32_t row) {
        const auto next = std::upper_bound(uses[row].begin(), uses[row].end(), t);
        return next == uses[row].end() ? -std::numeric_limits<double>::infinity()
                                       : -static_cast<double>(*next);
      });
}

Sum run(Policy policy, const HeadTrace& head, std::uint32_t rows, std::uint32_t capacity,
        Start from) {
  const std::vector<double> prompt = picks_of_prompt(head, rows, kNear, 1);
  const std::vector<std::uint32_t> start = rows_at_start(from, prompt, capacity);
  switch (policy) {
    case Policy::lru:
      return run_lru(head, rows, capacity, start);
    case Policy::frequency_8:
      return run_frequency(head, rows, capacity, start, 8);
    case Policy::frequency_32:
      return run_frequency(head, rows, capacity, start, 32);
    case Policy::mass_16:
      return run_mass(head, rows, capacity, start, prompt, 16);
    case Policy::fixed:
      return run_fixed(head, rows, start);
    case Policy::optimal:
      return run_optimal(head, rows, capacity, start);
  }
  return {};
}

struct Size {
  std::string name;
  double rows_of_context = 0, rows_of_step = 0;
  std::uint32_t of(std::uint32_t rows, double a_step) const {
    const double wanted = rows_of_context > 0 ? rows_of_context * rows : rows_of_step * a_step;
    return static_cast<std::uint32_t>(std::min<double>(rows, std::lround(wanted)));
  }
};
const std::vector<Size> kSizes = {
    {"5 %", 0.05, 0}, {"10 %", 0.1, 0}, {"20 %", 0.2, 0}, {"4 steps", 0, 4}, {"6 steps", 0, 6}};

// Shares of what a guess names.
struct Named {
  double selected = 0, of_selected = 0, missed = 0, of_missed = 0;
  void add(std::span<const std::uint32_t> guess, const HeadTrace::Step& step,
           std::span<const std::uint32_t> missed_rows) {
    const auto both = [&](std::span<const std::uint32_t> of) {
      std::vector<std::uint32_t> in;
      std::set_intersection(guess.begin(), guess.end(), of.begin(), of.end(),
                            std::back_inserter(in));
      return static_cast<double>(in.size());
    };
    selected += static_cast<double>(step.picked.size());
    of_selected += both(step.picked);
    missed += static_cast<double>(missed_rows.size());
    of_missed += both(missed_rows);
  }
};

struct Totals {
  std::map<std::pair<Policy, Start>, std::vector<Sum>> missed;   // by size
  std::map<std::pair<std::uint32_t, std::uint32_t>, Sum> fills;  // (queries, apart) at 10 %
  std::array<Named, 3> named;  // by the last step, before and between
  double head_steps = 0, first_head_steps = 0, picked = 0;
  bool optimal = true;
};

void replay(const SelectionTrace& trace, Totals* totals) {
  for (std::size_t i = 0; i < trace.of.size(); ++i) {
    const HeadTrace& head = trace.of[i];
    double picked = 0;
    for (const HeadTrace::Step& step : head.steps)
      picked += static_cast<double>(step.picked.size());
    const auto steps = static_cast<double>(head.steps.size());
    totals->picked += picked;
    totals->head_steps += steps;
    totals->first_head_steps += std::min<double>(steps, kFirstSteps);
    for (const auto& [start, ignored] : kStarts)
      for (std::size_t s = 0; s < kSizes.size(); ++s) {
        const std::uint32_t capacity = kSizes[s].of(trace.rows, picked / steps);
        const Sum optimal = run(Policy::optimal, head, trace.rows, capacity, start);
        for (const auto& [policy, name, expected] : kPolicies) {
          const Sum sum = run(policy, head, trace.rows, capacity, start);
          totals->optimal = totals->optimal && optimal.all <= sum.all;
          auto& of = totals->missed[{policy, start}];
          of.resize(kSizes.size());
          of[s] += sum;
        }
      }
    const std::uint32_t tenth = kSizes[1].of(trace.rows, 0);
    for (const std::uint32_t queries : {4u, 8u, 16u, 32u, 64u})
      for (const std::uint32_t apart : {1u, 4u}) {
        if (queries * apart > kPrompt) continue;
        const auto start =
            rows_at_start(Start::prompt, picks_of_prompt(head, trace.rows, queries, apart), tenth);
        totals->fills[{queries, apart}] += run_lru(head, trace.rows, tenth, start);
      }
    if (head.steps[0].guessed_before.empty()) continue;  // nothing is below it
    std::vector<std::vector<std::uint32_t>> missed;
    run_lru(head, trace.rows, tenth,
            rows_at_start(Start::prompt, picks_of_prompt(head, trace.rows, kNear, 1), tenth),
            &missed);
    for (std::size_t t = 1; t < head.steps.size(); ++t) {
      totals->named[0].add(head.steps[t - 1].picked, head.steps[t], missed[t]);
      totals->named[1].add(head.steps[t].guessed_before, head.steps[t], missed[t]);
      totals->named[2].add(head.steps[t].guessed_between, head.steps[t], missed[t]);
    }
  }
}

void print(const Totals& totals) {
  std::printf(
      "rows missed a step and KV head, of %.1f picked (in brackets: in the first %u steps)\n",
      totals.picked / totals.head_steps, kFirstSteps);
  for (const auto& [start, start_name] : kStarts) {
    std::printf("%-28s", ("from: " + std::string(start_name)).c_str());
    for (const Size& size : kSizes) std::printf(" %15s", size.name.c_str());
    std::printf("\n");
    for (const auto& [policy, name, expected] : kPolicies) {
      std::printf("  %-26s", std::string(name).c_str());
      for (const Sum& sum : totals.missed.at({policy, start}))
        std::printf(" %7.2f (%5.1f)", sum.all / totals.head_steps,
                    sum.first / totals.first_head_steps);
      if (start == Start::prompt)
        std::printf("  of 139: %.1f, %.1f, %.1f", expected[0], expected[1], expected[2]);
      std::printf("\n");
    }
  }
  std::printf("LRU at 10 %%, filled by what Q prompt queries picked, each so far from the next:\n");
  for (const auto& [fill, sum] : totals.fills)
    std::printf("  Q %2u, %u apart: %6.2f (%5.1f)\n", fill.first, fill.second,
                sum.all / totals.head_steps, sum.first / totals.first_head_steps);
  constexpr std::string_view kBy[] = {"last step's picks", "a query guessed before the layer below",
                                      "a query guessed after its attention"};
  std::printf(
      "named by                                  of a selection   of what LRU misses at 10 %%\n");
  for (std::size_t i = 0; i < totals.named.size(); ++i) {
    const Named& named = totals.named[i];
    std::printf("  %-40s %12.3f %12.3f\n", std::string(kBy[i]).c_str(),
                named.of_selected / std::max(1.0, named.selected),
                named.of_missed / std::max(1.0, named.missed));
  }
}

int run(int argc, char** argv) {
  Totals all;
  for (int i = 4; i < argc; ++i) {
    TraceOptions options;
    options.model = argv[1];
    options.context = static_cast<std::uint32_t>(std::atoi(argv[2]));
    options.steps = static_cast<std::uint32_t>(std::atoi(argv[3]));
    options.prompt = kPrompt;
    options.text = argv[i];
    const auto trace = trace_selections(options);
    if (!trace) {
      std::fprintf(stderr, "policy_bench: %s\n", trace.error().message.c_str());
      return 1;
    }
    Totals one;
    replay(*trace, &one);
    std::printf("%s: %u rows in each of %zu KV heads\n", argv[i], trace->rows, trace->of.size());
    if (argc > 5) print(one);
    replay(*trace, &all);
  }
  if (argc > 5) std::printf("all of them\n");
  print(all);
  if (!all.optimal) std::fprintf(stderr, "policy_bench: something missed less than the optimum\n");
  return all.optimal ? 0 : 1;
}

}  // namespace
}  // namespace thermocline::test

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: policy_bench MODEL CONTEXT STEPS TEXT...\n");
    return 2;
  }
  return thermocline::test::run(argc, argv);
}
