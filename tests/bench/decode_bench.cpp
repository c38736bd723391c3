// Decode rates of several methods at several depths, in turn within one process: what other
// programs on the machine do hits all of them alike, so the ratios hold where the rates don't.
//
//   decode_bench MODEL TEXT ROUNDS METHOD:DEPTH[:SETTING]...
//
// as exact:0, sketch:7600, sketch:raw.tls, exact:7600:keys.compress=q8_0.
//
// A depth is so many tokens of TEXT, read first, or a session file, whose rows the method seals: so
// contexts that take minutes to read are read once (thermocline session build). All of a subject is
// in memory. Every round decodes kTokens greedily on a fork of each. Printed: the
// median rate of each, the median over rounds of its ratio to the first, and both of the best
// rounds, which other programs disturbed least; and how long reading the text, or copying the
// session, took, and of it sealing. Every round must give the same tokens.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "runtime/thermocline.h"

namespace thermocline {
namespace {

// As many as `sketch` seals at a time: each round seals once, as 64 tokens of a long answer do.
constexpr int kTokens = 64;

struct Subject {
  std::string name, method;
  std::vector<std::string> settings;
  std::unique_ptr<KvCache> cache;
  std::unique_ptr<Timeline> timeline;
  int last = 0;  // the token that the next step feeds
  std::vector<int> answer;
  std::vector<double> rates;
};

[[noreturn]] void stop(const std::string& why) {
  std::fprintf(stderr, "decode_bench: %s\n", why.c_str());
  std::exit(1);
}
template <typename T>
T must(Result<T> result) {
  if (!result) stop(result.error().message);
  return std::move(*result);
}
void must(const Status& status) {
  if (!status) stop(status.error().message);
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void open(Engine* engine, Subject* subject, std::size_t depth) {
  CacheOptions options;
  options.method = subject->method;
  options.method_overrides = subject->settings;
  options.max_positions = static_cast<std::uint32_t>(depth + kTokens + 1);
  options.max_timelines = 2;  // the second is a round's
  subject->cache = must(engine->open_cache(options));
  subject->timeline = std::make_unique<Timeline>(must(subject->cache->start()));
}

void read_text(Engine* engine, const std::string& text, std::size_t depth, Subject* subject) {
  const std::vector<int> tokens =
      must(engine->encode(text, Engine::Special::as_text, Engine::Start::add));
  if (tokens.size() <= depth) stop("the text is shorter than " + subject->name);
  open(engine, subject, depth);
  std::vector<float> logits(engine->model().vocabulary);
  if (depth > 0)
    must(engine->prefill(*subject->timeline, std::span(tokens).first(depth), logits, {}));
  subject->last = tokens[depth];
}

void copy_session(Engine* engine, const std::string& path, Subject* subject) {
  const SavedSession saved = must(read_session(path));
  open(engine, subject, saved.held.positions);
  CacheOptions options;
  options.method = saved.method.name;
  options.method_overrides = saved.method.overrides;
  options.session.path = path;
  options.max_positions = saved.held.positions;
  const std::unique_ptr<KvCache> source = must(engine->open_cache(options));
  must(subject->cache->copy(must(source->resume()), *subject->timeline));
  subject->last = saved.text.tokens.back();
}

Subject prepare(Engine* engine, const std::string& text, const std::string& argument) {
  std::vector<std::string> parts;
  std::istringstream split(argument);
  for (std::string part; std::getline(split, part, ':');) parts.push_back(part);
  if (parts.size() < 2) stop("'" + argument + "' is not METHOD:DEPTH");
  Subject subject;
  subject.name = argument;
  subject.method = parts[0];
  subject.settings.assign(parts.begin() + 2, parts.end());
  if (is_session(parts[1]))
    copy_session(engine, parts[1], &subject);
  else
    read_text(engine, text, static_cast<std::size_t>(std::atoi(parts[1].c_str())), &subject);
  return subject;
}

void decode(Engine* engine, Subject* subject) {
  std::vector<float> logits(engine->model().vocabulary);
  Timeline timeline = must(subject->timeline->fork());
  std::vector<int> answer;
  int token = subject->last;
  const double start = seconds();
  for (int i = 0; i < kTokens; ++i) {
    const Feed feed{&timeline, token};
    must(engine->step({&feed, 1}, {logits.data(), 1, logits.size()}));
    token = static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    answer.push_back(token);
  }
  subject->rates.push_back(kTokens / (seconds() - start));
  if (subject->answer.empty()) subject->answer = answer;
  if (subject->answer != answer) stop(subject->name + ": a round gave other tokens");
}

int run(int argc, char** argv) {
  EngineOptions options;
  options.model_path = argv[1];
  const auto engine = must(Engine::open(options));
  std::ifstream file(argv[2]);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<Subject> subjects;
  for (int i = 4; i < argc; ++i) {
    const double start = seconds();
    subjects.push_back(prepare(engine.get(), text, argv[i]));
    std::fprintf(stderr, "%-20s filled in %.2f s, of it sealing %.2f\n", argv[i], seconds() - start,
                 subjects.back().cache->report().seal_ms / 1e3);
  }
  for (int round = 0; round <= std::atoi(argv[3]); ++round)
    for (Subject& subject : subjects) {
      decode(engine.get(), &subject);
      if (round == 0) subject.rates.clear();  // it warmed up
    }
  for (const Subject& subject : subjects) {
    std::vector<double> ratios;
    for (std::size_t r = 0; r < subject.rates.size(); ++r)
      ratios.push_back(subject.rates[r] / subjects[0].rates[r]);
    const auto [least, most] = std::minmax_element(ratios.begin(), ratios.end());
    const auto best = [](const Subject& of) {
      return *std::max_element(of.rates.begin(), of.rates.end());
    };
    std::printf("%-20s %7.1f tokens/s, %.3f of %s (%.3f to %.3f); best round %7.1f, %.3f\n",
                subject.name.c_str(), median(subject.rates), median(ratios),
                subjects[0].name.c_str(), *least, *most, best(subject),
                best(subject) / best(subjects[0]));
  }
  return 0;
}

}  // namespace
}  // namespace thermocline

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: decode_bench MODEL TEXT ROUNDS METHOD:DEPTH[:SETTING]...\n");
    return 2;
  }
  return thermocline::run(argc, argv);
}
