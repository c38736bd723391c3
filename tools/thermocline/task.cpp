#include "tools/thermocline/task.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <random>

#include "tools/thermocline/range.h"
#include "tools/thermocline/suggestion.h"

namespace thermocline {
namespace {

constexpr std::pair<Task, std::string_view> kTasks[] = {
    {Task::needle, "needle"},
    {Task::multi_needle, "multi-needle"},
    {Task::key_value, "key-value"},
    {Task::variable_tracking, "variable-tracking"}};

constexpr std::array<const char*, 32> kWords = {
    "apple",  "bridge", "candle", "desert", "engine", "forest", "garden",  "hammer",
    "island", "jacket", "kettle", "ladder", "market", "needle", "orange",  "pencil",
    "quarry", "rocket", "silver", "temple", "uncle",  "valley", "window",  "yellow",
    "zebra",  "anchor", "bottle", "castle", "dragon", "eagle",  "feather", "guitar"};

class Draw {
 public:
  explicit Draw(std::uint64_t seed) : random_(seed) {}
  // Below `end`. Not a distribution of the standard library, each of which draws differently.
  std::uint64_t below(std::uint64_t end) { return random_() % end; }
  std::string number() { return std::to_string(10000 + below(90000)); }
  double share() { return static_cast<double>(below(1000)) / 1000; }
  std::vector<std::string> words(std::size_t count) {
    std::vector<std::string> words(kWords.begin(), kWords.end());
    for (std::size_t i = 0; i < count; ++i) std::swap(words[i], words[i + below(words.size() - i)]);
    words.resize(count);
    return words;
  }

 private:
  std::mt19937_64 random_;
};

constexpr const char* kIntroduction =
    "There is important information hidden in the text below. Find it and remember it.\n\n";

TaskSample needle(double place, Draw* draw) {
  const std::string number = draw->number();
  return {
      kIntroduction,
      {{place, "\nThe pass key is " + number + ". Remember it. " + number + " is the pass key.\n"}},
      "\n\nWhat is the pass key? The pass key is",
      number};
}

TaskSample multi_needle(double place, Draw* draw) {
  constexpr std::size_t kNeedles = 4;
  TaskSample sample{kIntroduction, {}, "", ""};
  const std::vector<std::string> words = draw->words(kNeedles);
  for (std::size_t i = 0; i < kNeedles; ++i) {
    const std::string number = draw->number(), of = "the " + words[i];
    sample.hidden.push_back({i == 0 ? place : draw->share(),
                             "\nThe pass key of " + of + " is " + number + ". Remember it. " +
                                 number + " is the pass key of " + of + ".\n"});
    if (i > 0) continue;
    sample.question = "\n\nWhat is the pass key of " + of + "? The pass key of " + of + " is";
    sample.answer = number;
  }
  return sample;
}

TaskSample key_value(double place, Draw* draw) {
  constexpr std::size_t kPairs = 16;
  TaskSample sample{kIntroduction, {{place, "\n"}}, "", ""};
  const std::vector<std::string> words = draw->words(kPairs);
  const std::size_t asked = draw->below(kPairs);
  for (std::size_t i = 0; i < kPairs; ++i) {
    const std::string number = draw->number();
    sample.hidden.front().text += words[i] + ": " + number + "\n";
    if (i == asked) sample.answer = number;
  }
  sample.question = "\n\n" + words[asked] + ":";
  return sample;
}

// The question names the step from one to the other, which small models do not find by themselves.
TaskSample variable_tracking(double place, Draw* draw) {
  const std::string number = draw->number();
  const std::vector<std::string> words = draw->words(2);
  // The second takes the first one's value anywhere after it.
  const double later = place + (1 - place) * draw->share();
  return {kIntroduction,
          {{place, "\nVAR " + words[0] + " = " + number + "\n"},
           {later, "\nVAR " + words[1] + " = " + words[0] + "\n"}},
          "\n\nVAR " + words[1] + " = " + words[0] + " =",
          number};
}

}  // namespace

std::string_view name_of(Task task) {
  for (const auto& [one, name] : kTasks)
    if (one == task) return name;
  return "";
}

Result<std::vector<Task>> parse_tasks(std::string_view text) {
  TL_TRY_ASSIGN(const std::vector<std::string> names, parse_list(text, "--tasks"));
  std::vector<std::string> known;
  for (const auto& [task, name] : kTasks) known.emplace_back(name);
  std::vector<Task> tasks;
  for (const std::string& name : names) {
    const auto found = std::find_if(std::begin(kTasks), std::end(kTasks),
                                    [&](const auto& task) { return task.second == name; });
    if (found == std::end(kTasks))
      return fail(ErrorCode::invalid_argument, "--tasks '", name, "' is not known",
                  suggestion(name, known),
                  " (known: needle, multi-needle, key-value, variable-tracking)");
    if (std::count(tasks.begin(), tasks.end(), found->first) > 0)
      return fail(ErrorCode::invalid_argument, "--tasks lists ", name, " twice");
    tasks.push_back(found->first);
  }
  return tasks;
}

TaskSample make_sample(Task task, double place, std::uint64_t seed) {
  Draw draw(seed);
  TaskSample sample;
  switch (task) {
    case Task::needle:
      sample = needle(place, &draw);
      break;
    case Task::multi_needle:
      sample = multi_needle(place, &draw);
      break;
    case Task::key_value:
      sample = key_value(place, &draw);
      break;
    case Task::variable_tracking:
      sample = variable_tracking(place, &draw);
      break;
  }
  std::stable_sort(sample.hidden.begin(), sample.hidden.end(),
                   [](const auto& one, const auto& other) { return one.place < other.place; });
  return sample;
}

bool is_right(std::string_view continuation, std::string_view answer) {
  while (!continuation.empty() && continuation.front() == ' ') continuation.remove_prefix(1);
  if (!continuation.starts_with(answer)) return false;
  return continuation.size() == answer.size() ||
         !std::isalnum(static_cast<unsigned char>(continuation[answer.size()]));
}

}  // namespace thermocline
