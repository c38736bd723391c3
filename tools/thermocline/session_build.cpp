#include "tools/thermocline/session_build.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <optional>

#include "tools/thermocline/common_tokens.h"
#include "tools/thermocline/flags.h"
#include "tools/thermocline/input.h"
#include "tools/thermocline/interruption.h"
#include "tools/thermocline/json_output.h"
#include "tools/thermocline/printable.h"
#include "tools/thermocline/prompt.h"
#include "tools/thermocline/session_run.h"
#include "tools/thermocline/size.h"
#include "tools/thermocline/statistics.h"

namespace thermocline {
namespace {

namespace po = boost::program_options;
using Clock = std::chrono::steady_clock;

struct BuildFlags {
  ModelFlags model;
  MethodFlags method;
  TierFlags tiers;
  SessionFlags session;
  OutputFlags output;
  std::vector<std::string> texts;
  std::string tokens = "32k", chunk = "8k", from;
};

// What is saved every so many tokens is not lost when the machine is.
constexpr std::uint32_t kSaveTokens = 256 * 1024;

Result<std::uint32_t> parse_tokens(const std::string& text, const char* flag) {
  TL_TRY_ASSIGN(const std::uint64_t count, parse_size(text, flag));
  if (count == 0 || count > std::uint64_t{1} << 30)
    return fail(ErrorCode::invalid_argument, flag, " '", text,
                "': a number of tokens from 1 to 1,073,741,824, as in 100000 or 128k");
  return static_cast<std::uint32_t>(count);
}

// The texts' tokens, a new text beginning every `chunk` of them as the model wants one to begin.
Result<std::vector<int>> read_chunks(const Engine& engine, const BuildFlags& flags,
                                     std::uint32_t total, std::uint32_t chunk) {
  TL_TRY_ASSIGN(const std::vector<int> start,
                engine.encode("", Engine::Special::as_text, Engine::Start::add, interrupted));
  if (start.size() >= chunk)
    return fail(ErrorCode::invalid_argument, "--chunk ", chunk, " leaves no room for text");
  std::vector<int> tokens;
  tokens.reserve(total);
  for (const std::string& path : flags.texts) {
    if (tokens.size() == total) break;
    TL_TRY_ASSIGN(const std::string text, read_text(path));
    TL_TRY_ASSIGN(
        const std::vector<int> more,
        engine.encode(text, Engine::Special::as_text, Engine::Start::leave_out, interrupted));
    for (std::size_t next = 0; next < more.size() && tokens.size() < total;) {
      if (tokens.size() % chunk == 0) {
        tokens.insert(tokens.end(), start.begin(), start.end());
        if (tokens.size() >= total) break;
      }
      const std::size_t room =
          std::min<std::size_t>(chunk - tokens.size() % chunk, total - tokens.size());
      const std::size_t taken = std::min(room, more.size() - next);
      tokens.insert(tokens.end(), more.begin() + static_cast<std::ptrdiff_t>(next),
                    more.begin() + static_cast<std::ptrdiff_t>(next + taken));
      next += taken;
    }
  }
  if (tokens.size() < total)
    return fail(ErrorCode::invalid_argument, "the texts have ", format_count(tokens.size()),
                " tokens, and --tokens asks for ", format_count(total),
                ": name more of them with --text");
  return tokens;
}

void print_done(const BuildFlags& flags, const Engine& engine, const KvCache& cache,
                std::uint32_t tokens, std::uint32_t reused, Clock::time_point start) {
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  const CacheReport report = cache.report();
  std::fprintf(stderr, "%-10s %s: %s, %s of them there already, in %.1f s (%.0f tokens/s)\n",
               "session", printable(flags.session.path).c_str(),
               format_counted(tokens, "token").c_str(), format_count(reused).c_str(), seconds,
               seconds > 0 ? (tokens - reused) / seconds : 0.0);
  std::fprintf(stderr, "%-10s %s written, %s read; sealing took %.1f s\n", "disk",
               format_size(report.disk_bytes_written).c_str(),
               format_size(report.disk_bytes_read).c_str(), report.seal_ms / 1e3);
  print_memory_plan(engine.usage(cache), Detail::full);
  print_notes(cache.notes());
}

// How much of `tokens` the session holds that need not be read again: all, or whole chunks. What it
// holds may have taken hours, so nothing of it is cut but a chunk that goes on now.
Result<std::uint32_t> tokens_there(const std::string& path, const std::vector<int>& held,
                                   std::uint32_t positions, const std::vector<int>& tokens,
                                   std::uint32_t chunk) {
  const std::uint32_t common = common_tokens(held, tokens);
  if (common < held.size())
    return fail(ErrorCode::invalid_argument, "--session ", path, " holds ",
                format_counted(held.size(), "token"), ", and what is to be built ",
                common == tokens.size() ? "ends after " : "is another text after ",
                format_count(common), ": name another file, or remove this one");
  const std::uint32_t known = std::min(common, positions);
  return known == tokens.size() ? known : known / chunk * chunk;
}

Result<Timeline> begin_timeline(const BuildFlags& flags, KvCache& cache,
                                const std::vector<int>& tokens, std::uint32_t chunk) {
  if (!cache.saved()) return cache.start();
  const std::vector<int> held = cache.saved()->tokens;
  TL_TRY_ASSIGN(Timeline timeline, cache.resume());
  TL_TRY_ASSIGN(const std::uint32_t known,
                tokens_there(flags.session.path, held, timeline.length(), tokens, chunk));
  std::string why;
  TL_TRY(keep_or_start_over(cache, &timeline, known, &why));
  if (!why.empty() && !flags.output.quiet)
    print_notes(std::array{"all of it is read again: " + why});
  return timeline;
}

// Chunk by chunk, each read as a text of its own; what an earlier run has read stays.
Result<Exit> build(const BuildFlags& flags, Engine& engine, CacheOptions options) {
  TL_TRY_ASSIGN(const std::uint32_t total, parse_tokens(flags.tokens, "--tokens"));
  TL_TRY_ASSIGN(const std::uint32_t chunk, parse_tokens(flags.chunk, "--chunk"));
  const std::uint32_t longest = std::min(engine.model().context, kSpanRows);
  if (chunk > longest)
    return fail(ErrorCode::invalid_argument, "--chunk ", chunk,
                ": this model reads texts of up to ", longest, " tokens so");
  TL_TRY_ASSIGN(const std::vector<int> tokens, read_chunks(engine, flags, total, chunk));
  TL_TRY_ASSIGN(const ProgressStyle style, parse_progress_style(flags.output.progress));
  TL_TRY_ASSIGN(const std::optional<SavedSession> there, flags.session.look());
  options.max_positions = std::max(total, there ? there->held.positions : 0);
  if (!there) {
    options.course.emplace();
    for (std::uint32_t end = 0; end < total;)
      options.course->reads.push_back(end += std::min(chunk, total - end));
  }
  TL_TRY_ASSIGN(const std::unique_ptr<KvCache> cache, engine.open_cache(options));
  TL_TRY_ASSIGN(Timeline timeline, begin_timeline(flags, *cache, tokens, chunk));
  const std::uint32_t reused = timeline.length();
  WrittenText text;
  text.logits.resize(engine.model().vocabulary);
  const auto save = [&] {
    text.tokens.assign(tokens.begin(), tokens.begin() + timeline.length());
    return save_session(*cache, timeline, text, 0, "");
  };
  const Clock::time_point start = Clock::now();
  Progress progress(style, "reading", total, reused);
  bool stopped = false;
  for (std::uint32_t saved = reused; timeline.length() < total && !stopped;) {
    const std::uint32_t first = timeline.length();
    PrefillOptions prefill;
    prefill.alone = true;
    prefill.stop = interrupted;
    prefill.progress = [&](const PrefillProgress& at) { progress.update(first + at.done); };
    const Status read =
        engine.prefill(timeline, std::span(tokens).subspan(first, std::min(chunk, total - first)),
                       text.logits, prefill);
    stopped = !read && read.error().code == ErrorCode::cancelled;
    if (!read && !stopped) return tl::unexpected(read.error());
    if (!stopped && timeline.length() - saved >= kSaveTokens) {
      TL_TRY(save());
      saved = timeline.length();
    }
  }
  if (stopped) text.logits.clear();
  // Without a token read nobody knows what follows, and the file says it.
  if (timeline.length() > reused) TL_TRY(save());
  if (!flags.output.quiet) print_done(flags, engine, *cache, timeline.length(), reused, start);
  return stopped ? Exit::interrupted : Exit::success;
}

// --kv-host is of both caches. The one that is read takes what it has to, since its rows are read
// once and in order, and no copies of rows; the other has the rest. --kv-disk is of the file that
// is made: the other one is there.
Status share_memory(const Engine& engine, CacheOptions* from, CacheOptions* options) {
  const auto least_of = [&](CacheOptions alone) -> Result<std::uint64_t> {
    alone.tiers.host_bytes = kAutoBytes;
    TL_TRY_ASSIGN(const MemoryPlan plan, engine.plan(alone));
    std::uint64_t bytes = 0;
    for (const MemoryLine& line : plan.lines)
      if (line.tier == "host" && line.purpose != "row_cache") bytes += line.bytes;
    return bytes;
  };
  const std::uint64_t given = options->tiers.host_bytes;
  from->tiers = TierOptions();
  from->tiers.io_backend = options->tiers.io_backend;
  TL_TRY_ASSIGN(const std::uint64_t reading, least_of(*from));
  from->tiers.host_bytes = reading;
  options->beside_bytes += reading;
  if (given == kAutoBytes) return {};
  TL_TRY_ASSIGN(const std::uint64_t sealing, least_of(*options));
  if (given < reading || given - reading < sealing)
    return fail(ErrorCode::exhausted, "--kv-host gives ", format_size(given), ", and reading ",
                from->session.path, " takes ", format_size(reading), " of it, sealing its rows ",
                format_size(sealing), ": say --kv-host ", (reading + sealing + 1023) / 1024,
                "K or more");
  options->tiers.host_bytes = given - reading;
  return {};
}

// The rows of another session, sealed by this one's method.
Result<Exit> seal_anew(const BuildFlags& flags, Engine& engine, CacheOptions options) {
  std::error_code ignored;
  if (std::filesystem::equivalent(flags.from, flags.session.path, ignored))
    return fail(ErrorCode::invalid_argument, "--from ", flags.from,
                " is the --session: name another file to seal its rows in");
  TL_TRY_ASSIGN(const std::string watched,
                watched_by(options.method, options.method_directory, options.method_overrides));
  if (!watched.empty())
    return fail(ErrorCode::unsupported, "--from ", flags.from, " with method ", options.method,
                ", which watches a prefill (", watched,
                "): that session's rows have been read; build this one with --text");
  TL_TRY_ASSIGN(const SavedSession saved, read_session(flags.from));
  CacheOptions from = options;
  from.session.path = flags.from;
  from.method = saved.method.name;
  from.method_overrides = saved.method.overrides;
  from.max_positions = options.max_positions = saved.held.positions;
  from.course = Course{.resumed = saved.held, .is_copied = true};
  options.course = Course{.reads = {saved.held.positions}};  // cut no finer than a prefill is
  TL_TRY(share_memory(engine, &from, &options));
  TL_TRY_ASSIGN(const std::unique_ptr<KvCache> source, engine.open_cache(from));
  TL_TRY_ASSIGN(const Timeline read, source->resume());
  TL_TRY_ASSIGN(const std::unique_ptr<KvCache> cache, engine.open_cache(options));
  if (cache->saved())
    return fail(ErrorCode::invalid_argument, "--session ", flags.session.path,
                " is there already: remove it, or name another");
  TL_TRY_ASSIGN(const Timeline timeline, cache->start());
  const Clock::time_point start = Clock::now();
  TL_TRY(cache->copy(read, timeline, interrupted));
  TL_TRY(cache->save(timeline, saved.text));
  if (!flags.output.quiet) print_done(flags, engine, *cache, timeline.length(), 0, start);
  return Exit::success;
}

}  // namespace

Result<Exit> run_session_build(const std::vector<std::string>& arguments) {
  BuildFlags flags;
  CommandLine line(
      "session build", "-m FILE.gguf --session FILE --text FILE... [options]",
      "Fills a session with a long context at the price of a short one: texts of --chunk tokens "
      "each, read as if it were alone and joined at the positions that they have in the whole. "
      "For measuring what a cache does at lengths that would take hours to read. A session that "
      "is there goes on where it ends. With --from, the rows of another session, raw or not, are "
      "sealed by this one's method instead, unless that has to watch a prefill.");
  auto add = line.group("Text").add_options();
  add("text", po::value(&flags.texts)->value_name("FILE")->multitoken(),
      "read in this order, as much as is needed");
  add("tokens", po::value(&flags.tokens)->value_name("N"),
      "of the whole, as in 100000, 128k or 1M: powers of 1024 (32k)");
  add("chunk", po::value(&flags.chunk)->value_name("N"), "of each text (8k)");
  add("from", po::value(&flags.from)->value_name("FILE"), "a session to take the rows of");
  flags.model.add_to(&line);
  flags.method.add_to(&line);
  flags.tiers.add_to(&line);
  flags.session.add_to(&line);
  flags.output.add_to(&line);
  TL_TRY_ASSIGN(const CommandLine::Outcome outcome, line.parse(arguments));
  if (outcome == CommandLine::Outcome::helped) return Exit::success;
  if (flags.session.path.empty())
    return fail(ErrorCode::invalid_argument, "--session FILE says where it is to be built");
  if (flags.texts.empty() == flags.from.empty())
    return fail(ErrorCode::invalid_argument,
                "say what it is made of: --text FILE..., or --from SESSION");
  TL_TRY(flags.session.check_disk(flags.tiers, line));
  CacheOptions options = flags.method.cache_options();
  TL_TRY_ASSIGN(options.tiers, flags.tiers.tier_options());
  TL_TRY(flags.method.check(flags.method.method));
  options.session.path = flags.session.path;
  TL_TRY_ASSIGN(const std::unique_ptr<Engine> engine, flags.model.open());
  if (!flags.output.quiet) {
    print_notes(flags.tiers.notes(flags.session.path));
    print_notes(flags.method.notes());
    if (line.given("ctx-size"))
      print_notes(std::array{std::string("-c has no effect: a session is as long as its text")});
    if (!flags.from.empty())
      for (const char* option : {"tokens", "chunk"})
        if (line.given(option))
          print_notes(std::array{"--" + std::string(option) +
                                 " has no effect: --from takes all rows of a session"});
  }
  return flags.from.empty() ? build(flags, *engine, std::move(options))
                            : seal_anew(flags, *engine, std::move(options));
}

}  // namespace thermocline
