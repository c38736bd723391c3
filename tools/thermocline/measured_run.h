// A cache under one method with one timeline, as a measurement drives it.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/thermocline.h"
#include "tools/thermocline/progress.h"

namespace thermocline {

class MeasuredRun {
 public:
  // `label` names it in progress bars. Of a session that has something saved, it has read that.
  static Result<MeasuredRun> open(Engine& engine, const CacheOptions& options, std::string label,
                                  ProgressStyle style);

  // Reads the text on up to the end of `tokens`, whose first ones it has read; or forgets what it
  // has read beyond them (Timeline::truncate).
  Status read(std::span<const int> tokens);
  // Takes what `full` has read, where this method can: the rows as its own prefill would have left
  // them. unsupported: it has to read the text itself.
  Status take(const MeasuredRun& full);
  // A second run in the same cache, from where this one is: its steps leave this one's rows. The
  // cache's options have room for it (max_timelines).
  Result<MeasuredRun> fork() const;
  // Decodes one token; the time it took counts.
  Status step(int token);

  const std::string& label() const { return label_; }
  std::span<const float> logits() const { return logits_; }  // after the last step, or read()
  double step_ms() const { return step_ms_; }                // of all steps
  const KvCache& cache() const { return *cache_; }
  KvCache& cache() { return *cache_; }
  const Timeline& timeline() const { return timeline_; }

 private:
  MeasuredRun(Engine& engine, std::string label, ProgressStyle style)
      : engine_(&engine), label_(std::move(label)), style_(style) {}

  Engine* engine_;
  std::string label_;
  ProgressStyle style_;
  std::shared_ptr<KvCache> cache_;  // with its forks
  Timeline timeline_;               // of cache_
  std::vector<float> logits_;
  double step_ms_ = 0;
};

}  // namespace thermocline
