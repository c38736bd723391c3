#include "tools/thermocline/measured_run.h"

#include <chrono>

#include "tools/thermocline/interruption.h"

namespace thermocline {

Result<MeasuredRun> MeasuredRun::open(Engine& engine, const CacheOptions& options,
                                      std::string label, ProgressStyle style) {
  MeasuredRun run(engine, std::move(label), style);
  TL_TRY_ASSIGN(run.cache_, engine.open_cache(options));
  TL_TRY_ASSIGN(run.timeline_, run.cache_->saved() ? run.cache_->resume() : run.cache_->start());
  run.logits_.resize(engine.model().vocabulary);
  return run;
}

Status MeasuredRun::read(std::span<const int> tokens) {
  const std::uint32_t known = timeline_.length();
  if (known == tokens.size()) return {};
  if (known > tokens.size()) return timeline_.truncate(static_cast<std::uint32_t>(tokens.size()));
  Progress progress(style_, label_, tokens.size(), known);
  PrefillOptions options;
  options.progress = [&](const PrefillProgress& at) { progress.update(known + at.done); };
  options.stop = interrupted;
  return engine_->prefill(timeline_, tokens.subspan(known), logits_, options);
}

Status MeasuredRun::take(const MeasuredRun& full) {
  return cache_->copy(full.timeline_, timeline_, interrupted);
}

Result<MeasuredRun> MeasuredRun::fork() const {
  MeasuredRun run(*engine_, label_, style_);
  run.cache_ = cache_;
  TL_TRY_ASSIGN(run.timeline_, timeline_.fork());
  run.logits_ = logits_;
  return run;
}

Status MeasuredRun::step(int token) {
  if (interrupted()) return fail(ErrorCode::cancelled, "interrupted");
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  const Feed feed{&timeline_, token};
  TL_TRY(engine_->step({&feed, 1}, MatView<float>(logits_.data(), 1, logits_.size())));
  step_ms_ += std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  return {};
}

}  // namespace thermocline
