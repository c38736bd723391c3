// thermocline generate: reads a prompt, writes what follows.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>

#include "kernels/base/utf8.h"
#include "tools/thermocline/command.h"
#include "tools/thermocline/common_tokens.h"
#include "tools/thermocline/flags.h"
#include "tools/thermocline/generation.h"
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

struct GenerateFlags {
  ModelFlags model;
  PromptFlags prompt;
  SamplingFlags sampling;
  bool sampling_given = false;
  MethodFlags method;
  TierFlags tiers;
  SessionFlags session;
  OutputFlags output;
  bool dry_run = false;
  std::vector<std::string> notes;  // about the command line
};

Result<std::vector<int>> encode_prompt(const Engine& engine, const PromptFlags& flags,
                                       std::vector<std::string>* notes) {
  TL_TRY_ASSIGN(std::string text, flags.read());
  if (const std::size_t at = find_invalid_utf8(text); at != std::string::npos)
    notes->push_back("the prompt is not UTF-8 at byte " + format_count(at) +
                     ": it is read as bytes, as it is");
  const bool chat = !flags.chat_template.empty();
  const std::size_t bytes = text.size() + (chat ? flags.system.size() : 0);
  std::size_t lost = 0;  // a byte-level vocabulary may lack some
  std::vector<int> tokens;
  if (chat) {
    std::vector<ChatMessage> messages;
    if (!flags.system.empty()) messages.push_back({"system", flags.system});
    messages.push_back({"user", std::move(text)});
    TL_TRY_ASSIGN(tokens, engine.encode_chat(messages, flags.chat_template, Engine::Start::add,
                                             interrupted, &lost));
  } else {
    TL_TRY_ASSIGN(tokens, engine.encode(text, Engine::Special::parse, Engine::Start::add,
                                        interrupted, &lost));
  }
  if (lost > 0 && lost == bytes)
    return fail(ErrorCode::invalid_argument, "none of the prompt's ", format_counted(lost, "byte"),
                " has a token in this model");
  if (lost > 0)
    notes->push_back(format_count(lost) + " of the prompt's " + format_counted(bytes, "byte") +
                     (lost == 1 ? " has" : " have") + " no token in this model: left out");
  if (tokens.empty()) return fail(ErrorCode::invalid_argument, "the prompt is empty: say -p or -f");
  return tokens;
}

std::vector<std::string> notes_of(const GenerateFlags& flags, const CommandLine& line) {
  std::vector<std::string> notes = flags.model.notes();
  for (const auto& more :
       {flags.tiers.notes(flags.session.path), flags.method.notes(), flags.sampling.notes(line)})
    notes.insert(notes.end(), more.begin(), more.end());
  if (flags.prompt.escapes && flags.prompt.text.empty())
    notes.emplace_back("-e has no effect without -p: a file is read as it is");
  return notes;
}

// Of what is saved beside tokens and logits: facts, settings, the sampler's random numbers.
constexpr std::uint64_t kSavedTextBytes = std::uint64_t{16} << 10;

// The positions to plan for: no more than this run can reach.
std::uint32_t positions_needed(std::size_t prompt, int length, std::uint32_t context) {
  if (length < 0 || prompt == 0) return context;
  const std::uint64_t most = std::uint64_t{prompt} + static_cast<std::uint64_t>(length);
  return most < context ? static_cast<std::uint32_t>(most) : context;
}

Result<Exit> dry_run(const Engine& engine, const GenerateFlags& flags, CacheOptions options,
                     std::size_t prompt_tokens, KeptPrompt kept, std::vector<std::string> notes,
                     JsonOutput* json_output) {
  Result<MemoryPlan> planned = engine.plan(options);
  if (!planned && kept.is_used()) {
    kept.give_up(planned.error(), &options, &notes);
    planned = engine.plan(options);
  }
  TL_TRY_ASSIGN(const MemoryPlan plan, std::move(planned));
  notes.insert(notes.end(), plan.notes.begin(), plan.notes.end());
  const ModelInfo& model = engine.model();
  if (!flags.output.quiet) {
    std::fprintf(stderr, "%-10s %s, %s, mapped from %s\n", "model", printable(model.name).c_str(),
                 format_size(model.weight_bytes).c_str(), printable(model.path).c_str());
    std::fprintf(stderr, "%-10s %s; planned for %s positions of %s each\n", "prompt",
                 format_counted(prompt_tokens, "token").c_str(),
                 format_count(options.max_positions).c_str(),
                 format_size(model.kv_bytes_per_token).c_str());
    print_memory_plan(plan, Detail::full);
    print_notes(notes);
  }
  nlohmann::ordered_json json{
      {"schema", "thermocline/plan/1"}, {"build", build_json()},
      {"model", model_json(model)},     {"method", options.method},
      {"prompt_tokens", prompt_tokens}, {"positions", options.max_positions},
      {"memory", memory_json(plan)},    {"notes", notes}};
  TL_TRY(json_output->write(json_text(json)));
  return Exit::success;
}

// A text that goes on is sampled as it was begun, as far as nothing else is said.
Status take_sampling(const GenerateFlags& flags, std::uint64_t seed, WrittenText* text,
                     GenerationOptions* run, RunRecord* record) {
  if (text->sampler.empty()) return {};
  const auto refuse = [&](const Error& why) -> Status {
    return fail(ErrorCode::corrupt, "--session ", flags.session.path,
                ": field sampler: ", why.message, ": say --temp and -s to go on without it");
  };
  if (!flags.sampling_given) {
    SamplingFlags as_begun = flags.sampling;
    const Result<SamplingOptions> held = Sampler::options_in(text->sampler);
    if (held) as_begun.options = *held;
    const Result<SamplingOptions> checked = held ? as_begun.sampling_options() : held;
    if (!checked) return refuse(checked.error());
    run->sampling = *checked;
  }
  if (flags.sampling.seed >= 0) {
    text->sampler.clear();  // random numbers that were asked for, from their beginning
    return {};
  }
  record->seed = run->sampling.seed = seed;
  const Status state = Sampler(run->sampling).restore(text->sampler);
  return state ? state : refuse(state.error());
}

// The timeline to write on: a new one, or the session's.
Result<Timeline> begin_text(const Engine& engine, KvCache& cache, const GenerateFlags& flags,
                            WrittenText* text, GenerationOptions* run, RunRecord* record,
                            Reuse* reuse) {
  record->seed = run->sampling.seed;
  if (!cache.saved()) {
    if (text->tokens.empty())
      return fail(ErrorCode::not_found, "--session ", flags.session.path,
                  " has gone meanwhile: say -p or -f to begin a new one");
    text->sampled_from = static_cast<std::uint32_t>(text->tokens.size());
    return cache.start();
  }
  const std::uint64_t seed = cache.saved()->seed;
  const bool named = !flags.session.path.empty();
  TL_TRY_ASSIGN(Timeline timeline, begin_session(engine, cache, text, reuse));
  if (named) TL_TRY(check_in_common(flags.session.path, *reuse));
  TL_TRY(take_sampling(flags, seed, text, run, record));
  return timeline;
}

// On stderr, where it is read together with stdout: on a terminal beside a piped text, or in the
// pipe or file that both go to. A text without a line break at its end would have the statistics in
// its last line.
void begin_line(const std::string& text) {
  if (isatty(STDOUT_FILENO) || text.empty() || text.ends_with('\n')) return;
  struct stat out {};
  struct stat err {};
  const bool shared = ::fstat(STDOUT_FILENO, &out) == 0 && ::fstat(STDERR_FILENO, &err) == 0 &&
                      out.st_dev == err.st_dev && out.st_ino == err.st_ino;
  if (shared || isatty(STDERR_FILENO)) std::fputs("\n", stderr);
}

// Everything that can be wrong with the command line and the session's file, before a model is
// opened.
Result<CacheOptions> check(GenerateFlags& flags, const CommandLine& line,
                           const std::optional<SavedSession>& saved) {
  if (saved) {
    SessionFlags::take_method(*saved, line, &flags.method);
    if (!saved->text.note.empty())
      return fail(ErrorCode::unsupported, "--session ", flags.session.path,
                  " holds a conversation: 'thermocline chat' goes on with it");
  }
  CacheOptions options = flags.method.cache_options();
  TL_TRY_ASSIGN(options.tiers, flags.tiers.tier_options());
  TL_TRY(flags.method.check(flags.method.method));
  if (!flags.prompt.system.empty() && flags.prompt.chat_template.empty())
    return fail(ErrorCode::invalid_argument, "--system-prompt needs --chat-template auto");
  if (!flags.prompt.given() && !flags.dry_run && !saved)
    return fail(ErrorCode::invalid_argument, "no prompt: say -p TEXT, -f FILE or -f - for stdin",
                flags.session.path.empty() ? "" : "; the session is a new one");
  TL_TRY(flags.session.check_apart_from(flags.output.json));
  TL_TRY(flags.session.check_disk(flags.tiers, line));
  if (!flags.session.prefix_cache.empty()) TL_TRY(flags.session.prefix_cache_bytes());
  if (!flags.session.path.empty() && !flags.session.prefix_cache.empty())
    return fail(ErrorCode::invalid_argument,
                "--session and --prefix-cache: a text is kept in one place");
  return options;
}

// The prompt's text in a cache: begun, read and written on, and kept in the session's file.
class Run {
 public:
  Run(Engine& engine, const GenerateFlags& flags, const CacheOptions& cache_options,
      std::vector<int> prompt, KeptPrompt kept, GenerationOptions options, RunRecord* record)
      : engine_(engine),
        flags_(flags),
        cache_options_(cache_options),
        prompt_(std::move(prompt)),
        kept_(std::move(kept)),
        options_(std::move(options)),
        record_(record) {
    options_.after_span = [this](std::span<const int> read) { return after_span(read); };
    options_.after_reading = [this](const WrittenText& so_far) { return after_reading(so_far); };
    if (!flags_.session.path.empty())
      options_.while_writing = [this](const WrittenText& so_far) { return save(so_far); };
    options_.show = [this, show = std::move(options_.show)](std::string_view more) -> Status {
      TL_TRY_ASSIGN(const std::string_view unseen, beyond_shown(more));
      if (unseen.empty()) return {};
      Status seen = show(unseen);
      is_seen_ = seen.has_value();
      return seen;
    };
  }

  Status open() {
    Status opened = begin();
    if (!opened && kept_.is_used()) {
      close_kept(opened.error());
      opened = begin();
    }
    return opened;
  }

  Status write() {
    Generation* out = &record_->generation;
    Status status = generate_text(engine_, *cache_, timeline_, options_, &text_, out);
    if (!status && kept_.is_used() && is_seen_) {  // once more, and what was shown not again
      close_kept(status.error());
      shown_ = std::exchange(*out, {}).text;
      TL_TRY(begin());
      status = generate_text(engine_, *cache_, timeline_, options_, &text_, out);
    }
    const CacheReport before = cache_->report();
    if (const Status saved = save(text_); status) status = saved;
    out->decode_cost.disk_bytes_written += difference(cache_->report(), before).disk_bytes_written;
    if (!reuse_.line.empty())
      record_->notes.push_back((flags_.session.path.empty() ? std::string("--prefix-cache")
                                                            : "--session " + flags_.session.path) +
                               ": " + reuse_.line);
    if (keeps_another_)
      record_->notes.push_back("--session " + flags_.session.path +
                               " keeps what it held: this text was not read to its end");
    record_->memory = engine_.usage(*cache_);
    record_->ranks = cache_->ranks(timeline_);
    record_->disk_read_cost = cache_->disk_read_cost();
    for (const std::string& note : cache_->notes()) record_->notes.push_back(note);
    return status;
  }

 private:
  // What of `more` was not shown before: a text that is written once more is, to the bit, the same.
  Result<std::string_view> beyond_shown(std::string_view more) {
    const std::size_t again = std::min(more.size(), shown_.size() - shown_again_);
    if (more.substr(0, again) != std::string_view(shown_).substr(shown_again_, again))
      return fail(ErrorCode::corrupt,
                  "--prefix-cache: without what was kept the text is not the one shown so far: the "
                  "rest of it is left out");
    shown_again_ += again;
    return more.substr(again);
  }

  Status begin() {
    text_ = {};
    text_.tokens = prompt_;
    reuse_ = {};
    TL_TRY_ASSIGN(cache_, engine_.open_cache(cache_options_));
    const bool holds_a_text = cache_->saved() != nullptr;
    TL_TRY_ASSIGN(timeline_,
                  begin_text(engine_, *cache_, flags_, &text_, &options_, record_, &reuse_));
    all_stays_ = reuse_.common == reuse_.held;
    keeps_another_ = !flags_.session.path.empty() && holds_a_text;
    kept_.begin_reading(*cache_, &record_->notes);
    return {};
  }

  // What was kept of the prompt could not be gone on from, as `why` says.
  void close_kept(const Error& why) {
    timeline_ = Timeline();
    cache_.reset();
    kept_.give_up(why, &cache_options_, &record_->notes);
  }

  Status save(const WrittenText& so_far) {
    if (flags_.session.path.empty() || timeline_.length() == 0 || keeps_another_) return {};
    return save_session(*cache_, timeline_, so_far, record_->seed, "");
  }

  // A long text is not lost when the machine is, and costs no more than a tail each time.
  Status after_span(std::span<const int> read) {
    if (prompt_.empty() || !all_stays_) return {};
    keeps_another_ = false;
    WrittenText so_far;
    so_far.tokens.assign(read.begin(), read.end());
    return save(so_far);
  }

  // The costly part is done: it is not lost whatever comes.
  Status after_reading(const WrittenText& so_far) {
    keeps_another_ = false;
    if (!prompt_.empty()) TL_TRY(save(so_far));
    kept_.read(*cache_, timeline_, so_far, record_->seed, &record_->notes);
    return {};
  }

  Engine& engine_;
  const GenerateFlags& flags_;
  CacheOptions cache_options_;
  const std::vector<int> prompt_;  // empty: the session's text goes on
  KeptPrompt kept_;
  GenerationOptions options_;
  RunRecord* record_;
  std::unique_ptr<KvCache> cache_;
  Timeline timeline_;
  WrittenText text_;
  Reuse reuse_;
  // Until the text has been read the file keeps what it held: no less of that, and with what it
  // knew of the next token.
  bool keeps_another_ = false;
  bool all_stays_ = false;       // of what the file held when the text was begun
  std::string shown_;            // before the text was begun once more
  std::size_t shown_again_ = 0;  // of that
  bool is_seen_ = true;          // whoever reads it is still there
};

Result<Exit> generate(GenerateFlags& flags, const CommandLine& line) {
  using Clock = std::chrono::steady_clock;
  GenerationOptions options;
  TL_TRY_ASSIGN(options.sampling, flags.sampling.sampling_options());
  TL_TRY_ASSIGN(options.progress, parse_progress_style(flags.output.progress));
  TL_TRY_ASSIGN(const std::optional<SavedSession> saved, flags.session.look());
  TL_TRY_ASSIGN(CacheOptions cache_options, check(flags, line, saved));
  TL_TRY_ASSIGN(JsonOutput json_output, JsonOutput::open(flags.output.json));

  RunRecord record;
  const Clock::time_point start = Clock::now();
  TL_TRY_ASSIGN(const std::unique_ptr<Engine> engine, flags.model.open());
  const ModelInfo& model = engine->model();
  record.notes = flags.notes;
  std::vector<int> prompt;
  if (flags.prompt.given()) {
    TL_TRY_ASSIGN(prompt, encode_prompt(*engine, flags.prompt, &record.notes));
  }
  record.context = flags.model.context == 0 ? model.context : flags.model.context;
  if (const auto note = note_on_context(record.context, model)) record.notes.push_back(*note);
  const bool goes_on = prompt.empty() && saved;
  const std::size_t to_read = goes_on ? saved->text.tokens.size() : prompt.size();
  TL_TRY(check_fits(to_read, record.context, model, saved ? Stretch() : flags.model.rope_freq_scale,
                    goes_on ? "--session " + flags.session.path : "the prompt"));
  cache_options.max_positions = positions_needed(to_read, flags.sampling.length, record.context);
  if (saved)  // what it holds is resumed whole, and cut then
    cache_options.max_positions =
        std::min(record.context, std::max(cache_options.max_positions, saved->held.positions));
  cache_options.session.text_bytes = kSavedTextBytes;
  if (saved)
    cache_options.course = course_on(*saved, prompt);
  else if (!prompt.empty())
    cache_options.course = Course{{}, {static_cast<std::uint32_t>(prompt.size())}};
  TL_TRY_ASSIGN(KeptPrompt kept, KeptPrompt::begin(flags.session, *engine, prompt,
                                                   flags.dry_run ? PrefixCache::Missing::stays
                                                                 : PrefixCache::Missing::is_made,
                                                   &cache_options, &record.notes));
  if (flags.dry_run) {
    if (saved && !prompt.empty()) {  // what begin_text() refuses
      Reuse reuse;
      reuse.held = saved->held.positions;
      reuse.common = std::min(saved->held.positions, common_tokens(saved->text.tokens, prompt));
      TL_TRY(check_in_common(flags.session.path, reuse));
    }
    return dry_run(*engine, flags, std::move(cache_options), prompt.size(), std::move(kept),
                   record.notes, &json_output);
  }

  options.length = flags.sampling.length;
  options.context = record.context;
  options.ignore_end = flags.sampling.ignore_end;
  options.stops = flags.sampling.stops;
  // With the statistics on stdout the text is one of them: stdout is then one JSON value.
  const bool text_in_json = flags.output.json == "-";
  options.show = [&](std::string_view more) {
    return text_in_json ? Status{} : write_to_stdout(more);
  };
  record.command = "generate";
  record.method = cache_options.method;
  record.model = &model;
  Run run(*engine, flags, cache_options, std::move(prompt), std::move(kept), std::move(options),
          &record);
  TL_TRY(run.open());
  record.load_ms = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  const Status status = run.write();
  if (isatty(STDOUT_FILENO) && !record.generation.text.ends_with('\n')) std::puts("");
  if (!status) record.error = status.error().message;
  if (!flags.output.quiet && !text_in_json) begin_line(record.generation.text);
  if (!flags.output.quiet)
    print_statistics(record, flags.output.verbose ? Detail::full : Detail::brief);
  TL_TRY(json_output.write(json_text(statistics_json(record))));
  TL_TRY(status);
  return interrupted() ? Exit::interrupted : Exit::success;
}

}  // namespace

Result<Exit> run_generate(const std::vector<std::string>& arguments) {
  GenerateFlags flags;
  CommandLine line("generate", "-m FILE.gguf -p TEXT | -f FILE [options]",
                   "Continues a text. Only the generated text goes to stdout; everything else, the "
                   "statistics at the end included, to stderr. Ctrl-C stops at the next token and "
                   "still prints them; a second one quits. With --session the text is saved as it "
                   "is read, once a minute as it is written, and at the end.");
  flags.prompt.add_to(&line);
  flags.model.add_to(&line);
  flags.sampling.add_to(&line);
  flags.method.add_to(&line);
  flags.tiers.add_to(&line);
  flags.session.add_with_prefix_cache_to(&line);
  flags.output.add_to(&line);
  line.group("Other").add_options()(
      "dry-run", po::bool_switch(&flags.dry_run),
      "print the memory that would be taken, by tier, and stop before a weight is read");
  TL_TRY_ASSIGN(const CommandLine::Outcome outcome, line.parse(arguments));
  if (outcome == CommandLine::Outcome::helped) return Exit::success;
  flags.notes = notes_of(flags, line);
  flags.sampling_given = SamplingFlags::given(line);
  return generate(flags, line);
}

}  // namespace thermocline
