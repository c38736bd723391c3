#include "tools/thermocline/generation.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <utility>

#include "tools/thermocline/interruption.h"
#include "tools/thermocline/size.h"
#include "tools/thermocline/stop_text.h"

namespace thermocline {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// Tokens that may not be drawn where a text is to go on.
std::vector<int> end_tokens(const Engine& engine) {
  std::vector<int> tokens;
  for (std::uint32_t t = 0; t < engine.model().vocabulary; ++t)
    if (engine.ends_generation(static_cast<int>(t))) tokens.push_back(static_cast<int>(t));
  return tokens;
}

// Tokens become text, text is held back for stop strings and shown.
class Writer {
 public:
  Writer(const Engine& engine, const GenerationOptions& options, Generation* out)
      : stream_(engine.stream()), stop_(options.stops), show_(options.show), out_(out) {}

  Status feed(int token) { return pass_on(stop_.feed(stream_->feed(token))); }
  Status finish() {
    if (stop_.stopped()) return {};
    TL_TRY(pass_on(stop_.feed(stream_->flush())));
    return stop_.stopped() ? Status{} : pass_on(stop_.flush());
  }
  const StopText& stop() const { return stop_; }

 private:
  Status pass_on(const std::string& text) {
    if (text.empty()) return {};
    out_->text += text;
    return show_(text);
  }

  std::unique_ptr<TextStream> stream_;
  StopText stop_;
  std::function<Status(std::string_view)> show_;
  Generation* out_;
};

Status prefill_prompt(Engine& engine, Timeline& timeline, std::span<const int> prompt,
                      std::uint32_t cached, const GenerationOptions& options,
                      std::span<float> logits) {
  Progress progress(options.progress, "reading", prompt.size(), cached);
  PrefillOptions prefill;
  prefill.stop = interrupted;
  // Its spans end on this grid anyway: no answer depends on it.
  for (std::size_t first = cached, end = 0; first < prompt.size(); first = end) {
    end = std::min(prompt.size(), first - first % kSpanRows + kSpanRows);
    prefill.progress = [&](const PrefillProgress& at) { progress.update(first + at.done); };
    const bool last = end == prompt.size();
    TL_TRY(engine.prefill(timeline, prompt.subspan(first, end - first),
                          last ? logits : std::span<float>{}, prefill));
    if (!last && options.after_span) TL_TRY(options.after_span(prompt.first(end)));
  }
  return {};
}

}  // namespace

const char* name_of(StopReason reason) {
  switch (reason) {
    case StopReason::end_of_text:
      return "eos";
    case StopReason::length:
      return "length";
    case StopReason::context:
      return "length";
    case StopReason::stop_text:
      return "stop";
    case StopReason::interruption:
      return "interrupted";
    case StopReason::failure:
      return "error";
  }
  return "";
}

Status check_fits(std::size_t prompt_tokens, std::uint32_t context, const ModelInfo& model,
                  Stretch in_force, const std::string& text) {
  if (prompt_tokens < context) return {};
  const std::uint64_t needed = prompt_tokens + 1;
  if (!in_force || (context < model.context && needed <= model.context))
    return fail(ErrorCode::exhausted, text, " has ", format_count(prompt_tokens),
                " tokens and -c allows ", format_count(context), ": say -c ", needed,
                " or more (the model was trained for ", format_count(model.context), ")");
  const double now = *in_force > 0 ? static_cast<double>(*in_force) : 1.0;
  const double scale = now * static_cast<double>(model.context) / static_cast<double>(needed);
  constexpr double kLeast = 0.01;  // beyond it no model makes sense of a text
  if (scale < kLeast)
    return fail(ErrorCode::exhausted, text, " has ", format_count(prompt_tokens),
                " tokens and the context ", format_count(context), ": shorten it");
  return fail(ErrorCode::exhausted, text, " has ", format_count(prompt_tokens),
              " tokens and the context ", format_count(context), " (the model was trained for ",
              format_count(model.context),
              "): shorten it, or stretch the positions with --rope-scaling yarn "
              "--rope-freq-scale ",
              std::floor(scale * 100) / 100, " -c ", needed, " or more");
}

std::optional<std::string> note_on_context(std::uint32_t context, const ModelInfo& model) {
  if (context <= model.context) return std::nullopt;
  return "-c " + format_count(context) + " is beyond the " + format_count(model.context) +
         " positions that the model was trained for: answers get worse there";
}

Result<std::uint32_t> keep_or_start_over(KvCache& cache, Timeline* timeline, std::uint32_t known,
                                         std::string* why) {
  const Status cut = timeline->truncate(known);
  if (cut) return known;
  const ErrorCode code = cut.error().code;
  if (code != ErrorCode::unsupported && code != ErrorCode::exhausted)
    return tl::unexpected(cut.error());
  if (why) *why = cut.error().message;
  *timeline = Timeline();  // gives its rows back before there are others
  TL_TRY_ASSIGN(*timeline, cache.start());
  return 0u;
}

Status generate_text(Engine& engine, KvCache& cache, Timeline& timeline,
                     const GenerationOptions& options, WrittenText* text, Generation* out) {
  const std::uint32_t cached_tokens = timeline.length();
  std::vector<int>& tokens = text->tokens;
  TL_CHECK(cached_tokens <= tokens.size());
  TL_CHECK(cached_tokens < tokens.size() || !text->logits.empty());
  std::vector<float> logits = std::move(text->logits);
  text->logits.clear();
  logits.resize(engine.model().vocabulary);
  const MatView<float> next(logits.data(), 1, logits.size());
  out->prompt_tokens = static_cast<std::uint32_t>(tokens.size());
  out->cached_tokens = cached_tokens;

  const CacheReport at_start = cache.report();
  const Clock::time_point start = Clock::now();
  const std::size_t read_to =
      std::clamp<std::size_t>(text->sampled_from, cached_tokens, tokens.size());
  Status read;
  if (read_to > cached_tokens)
    read = prefill_prompt(engine, timeline, std::span(tokens).first(read_to), cached_tokens,
                          options, logits);
  while (read && timeline.length() < tokens.size()) {
    const Feed feed{&timeline, tokens[timeline.length()]};
    read = engine.step({&feed, 1}, next);
  }
  out->prefill_ms = milliseconds_since(start);
  out->prefilled_tokens = timeline.length() - cached_tokens;
  const CacheReport after_prefill = cache.report();
  out->prefill_cost = difference(after_prefill, at_start);
  if (!read) {
    // Of a prompt what was read; of what was sampled, all: it is the text's, fed or not.
    if (timeline.length() < text->sampled_from) tokens.resize(timeline.length());
    if (read.error().code != ErrorCode::cancelled) return read;
    out->reason = StopReason::interruption;
    return {};
  }

  Sampler sampler(options.sampling);
  if (!text->sampler.empty()) TL_TRY(sampler.restore(text->sampler));
  for (const int token : tokens) sampler.accept(token);
  const auto tell = [&](const std::function<Status(const WrittenText&)>& whom) -> Status {
    text->logits = logits;
    text->sampler = sampler.state();
    TL_TRY(whom(*text));
    text->logits.clear();
    return {};
  };
  if (options.after_reading) TL_TRY(tell(options.after_reading));
  Writer writer(engine, options, out);
  const std::vector<int> never = options.ignore_end ? end_tokens(engine) : std::vector<int>{};
  const Clock::time_point reading_done = Clock::now();
  Clock::time_point told = reading_done;
  Status status;
  for (;;) {
    if (options.length >= 0 && out->tokens.size() >= static_cast<std::size_t>(options.length)) {
      out->reason = StopReason::length;
      break;
    }
    if (interrupted()) {
      out->reason = StopReason::interruption;
      break;
    }
    for (const int token : never)
      logits[static_cast<std::size_t>(token)] = -std::numeric_limits<float>::infinity();
    const int token = sampler.sample(logits);
    if (out->tokens.empty()) out->first_token_ms = milliseconds_since(start);
    if (!options.ignore_end && engine.ends_generation(token)) {
      out->reason = StopReason::end_of_text;
      break;
    }
    out->tokens.push_back(token);
    tokens.push_back(token);
    sampler.accept(token);
    status = writer.feed(token);
    if (!status) break;
    if (writer.stop().stopped()) {
      out->reason = StopReason::stop_text;
      out->stop_text = writer.stop().found();
      break;
    }
    if (options.length >= 0 && out->tokens.size() >= static_cast<std::size_t>(options.length))
      continue;  // the last one needs no step after it
    if (timeline.length() >= options.context) {
      out->reason = StopReason::context;
      break;
    }
    const Feed feed{&timeline, token};
    status = engine.step({&feed, 1}, next);
    if (!status) break;
    ++out->steps;
    if (options.while_writing && Clock::now() - told >= options.while_writing_every) {
      status = tell(options.while_writing);
      if (!status) break;
      told = Clock::now();
    }
  }
  out->decode_ms = milliseconds_since(reading_done);
  out->decode_cost = difference(cache.report(), after_prefill);
  text->sampler = sampler.state();
  if (timeline.length() == tokens.size()) text->logits = std::move(logits);
  TL_TRY(status);
  return writer.finish();
}

}  // namespace thermocline
