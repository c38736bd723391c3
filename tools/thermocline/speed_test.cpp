#include "tools/thermocline/speed_test.h"

#include <algorithm>
#include <chrono>

#include "tools/thermocline/interruption.h"
#include "tools/thermocline/size.h"
#include "tools/thermocline/statistics.h"

namespace thermocline {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

// FNV-1a of the likeliest token in each row: two runs that agree took the same way.
std::uint64_t add_answers(std::uint64_t hash, MatView<const float> logits) {
  for (std::size_t r = 0; r < logits.rows(); ++r) {
    const auto row = logits[r];
    const auto best =
        static_cast<std::uint64_t>(std::max_element(row.begin(), row.end()) - row.begin());
    hash = (hash ^ best) * 1099511628211u;
  }
  return hash;
}

}  // namespace

SpeedBench::SpeedBench(Engine& engine, KvCache& cache, std::span<const int> tokens,
                       std::uint32_t sequences, ProgressStyle style)
    : engine_(engine),
      cache_(cache),
      style_(style),
      sequences_(sequences),
      feeds_(sequences),
      logits_(std::size_t{sequences} * engine.model().vocabulary) {
  for (std::uint32_t s = 0; s < sequences; ++s) {
    auto& own = sequences_[s].tokens;
    own.assign(tokens.begin(), tokens.end());
    std::rotate(own.begin(), own.begin() + static_cast<std::ptrdiff_t>(own.size() * s / sequences),
                own.end());
  }
}

Status SpeedBench::fill(std::uint32_t depth) {
  depth_ = depth;
  for (Sequence& sequence : sequences_) sequence.timeline = Timeline();
  for (Sequence& sequence : sequences_) {
    TL_TRY_ASSIGN(sequence.timeline, cache_.start());
  }
  const Clock::time_point start = Clock::now();
  if (depth > 0) TL_TRY(prefill(depth, "filling " + format_count(depth)));
  depth_ms_ = milliseconds(start, Clock::now());
  return {};
}

Status SpeedBench::repeat(const SpeedTest& test, SpeedSamples* samples) {
  const CacheReport before = cache_.report();
  const Clock::time_point start = Clock::now();
  double first_ms = 0;
  std::uint64_t hash = 14695981039346656037u;
  if (test.prompt > 0) {
    TL_TRY(prefill(test.prompt, test.name()));
    first_ms = milliseconds(start, Clock::now());
    hash = add_answers(hash, logits());
  }
  for (std::uint32_t i = 0; i < test.generated; ++i) {
    TL_TRY(step(depth_ + i));
    if (i == 0) first_ms = milliseconds(start, Clock::now());
    hash = add_answers(hash, logits());
  }
  const double ms = milliseconds(start, Clock::now());
  const CacheReport cost = difference(cache_.report(), before);
  for (Sequence& sequence : sequences_) TL_TRY(sequence.timeline.truncate(depth_));
  if (samples == nullptr) return {};
  const std::uint64_t count = (test.prompt + test.generated) * sequences_.size();
  samples->rates.push_back(static_cast<double>(count) / ms * 1e3);
  samples->first_token_ms.push_back(depth_ms_ + first_ms);
  samples->tokens += count;
  samples->weight_reads += test.generated;
  samples->cost = sum(samples->cost, cost);
  samples->same_answers = samples->same_answers && samples->answer.value_or(hash) == hash;
  if (!samples->answer) samples->answer = hash;
  return {};
}

// One sequence after the other: a prefill shares the weights among its own rows.
Status SpeedBench::prefill(std::uint32_t count, const std::string& label) {
  const std::size_t n = sequences_.size();
  Progress progress(style_, label, count * n);
  for (std::size_t s = 0; s < n; ++s) {
    PrefillOptions options;
    options.progress = [&](const PrefillProgress& at) { progress.update(count * s + at.done); };
    options.stop = interrupted;
    Sequence& to = sequences_[s];
    const std::span<const int> text(to.tokens);
    TL_TRY(engine_.prefill(to.timeline, text.subspan(to.timeline.length(), count), logits()[s],
                           options));
  }
  return {};
}

Status SpeedBench::step(std::uint32_t position) {
  if (interrupted()) return fail(ErrorCode::cancelled, "interrupted");
  for (std::size_t s = 0; s < sequences_.size(); ++s)
    feeds_[s] = {&sequences_[s].timeline, sequences_[s].tokens[position]};
  return engine_.step(feeds_, logits());
}

}  // namespace thermocline
