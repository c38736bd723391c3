#include "tools/thermocline/session_run.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "tools/thermocline/common_tokens.h"
#include "tools/thermocline/size.h"

namespace thermocline {
namespace {

namespace po = boost::program_options;

std::string describe(std::uint32_t reused, std::size_t of, const std::string& why) {
  return "reused " + format_count(reused) + " of " + format_counted(of, "token") +
         (why.empty() ? "" : "; " + why);
}

// The session's own text goes on.
Result<std::uint32_t> go_on(KvCache& cache, const SessionText& saved, Timeline* timeline,
                            WrittenText* text, std::string* why) {
  text->tokens = saved.tokens;
  text->sampler = saved.sampler;
  text->logits = saved.logits;
  text->sampled_from = timeline->length();
  if (text->tokens.empty())
    return fail(ErrorCode::invalid_argument, "the session holds no text: say -p or -f");
  const auto all = static_cast<std::uint32_t>(text->tokens.size());
  if (timeline->length() < all || !text->logits.empty()) return timeline->length();
  // All of it is there, but not what the model says of the next token: the last one is read again.
  text->sampled_from = all;
  return keep_or_start_over(cache, timeline, all - 1, why);
}

// Another text, which may begin like the session's.
Result<std::uint32_t> compare(KvCache& cache, const SessionText& saved, Timeline* timeline,
                              WrittenText* text, std::uint32_t* in_common, std::string* why) {
  const std::vector<int>& prompt = text->tokens;
  text->sampled_from = static_cast<std::uint32_t>(prompt.size());
  const std::uint32_t length = timeline->length();
  const std::uint32_t common = std::min(length, common_tokens(saved.tokens, prompt));
  *in_common = common;
  if (common == prompt.size() && common == length && !saved.logits.empty()) {
    text->logits = saved.logits;
    return common;
  }
  const std::uint32_t known = std::min(common, static_cast<std::uint32_t>(prompt.size()) - 1);
  if (known < common)
    *why = "the last one is read again for what follows it";
  else if (common == length)
    *why = "the session ends there";
  else
    *why = "the texts differ from token " + format_count(common + 1) + " on";
  return keep_or_start_over(cache, timeline, known, why);
}

}  // namespace

void SessionFlags::add_to(CommandLine* line) {
  line->group("Session").add_options()(
      "session", po::value(&path)->value_name("FILE")->notifier([](const std::string& given) {
        if (given.empty()) throw po::error("--session '' names no file");
      }),
      "a file that keeps the text with its KV cache: rows live in it instead of a scratch file, "
      "and the next run with it reads only what is new. Made where there is none");
}

void SessionFlags::add_with_prefix_cache_to(CommandLine* line) {
  add_to(line);
  line->group("Session").add_options()(
      "prefix-cache", po::value(&prefix_cache)->value_name("SIZE"),
      "keep prompts that were read in the user's cache folder, up to so much disk, and read only "
      "what they do not begin with; those used longest ago make room. 'thermocline session ls' "
      "lists them (none)");
}

std::optional<Course> course_on(const SavedSession& saved, std::span<const int> prompt) {
  const std::uint32_t held = saved.held.positions;
  const std::size_t all = prompt.empty() ? saved.text.tokens.size() : prompt.size();
  const bool all_stays = prompt.empty() || common_tokens(saved.text.tokens, prompt) >= held;
  // Without what is known of the token after it the last one is read again.
  if (!all_stays || all < held || (all == held && saved.text.logits.empty())) return std::nullopt;
  Course course{saved.held, {}};
  if (!prompt.empty() && all > held) course.reads.push_back(static_cast<std::uint32_t>(all));
  return course;
}

namespace {

// Of a text of so many tokens in the session: what is certain to be taken.
std::uint64_t rows_bytes(const Engine& engine, CacheOptions options, std::size_t tokens) {
  options.tiers = {};
  options.max_positions = static_cast<std::uint32_t>(tokens) + 1;
  options.course.reset();
  std::uint64_t bytes = 0;
  if (const auto plan = engine.plan(options))
    for (const MemoryLine& line : plan->lines)
      if (line.purpose == "rows") bytes += line.bytes;
  return bytes;
}

}  // namespace

Result<KeptPrompt> KeptPrompt::begin(const SessionFlags& flags, const Engine& engine,
                                     std::span<const int> prompt, PrefixCache::Missing missing,
                                     CacheOptions* options, std::vector<std::string>* notes) {
  KeptPrompt kept;
  options->session.path = flags.path;
  kept.plain_positions_ = options->max_positions;
  kept.plain_course_ = options->course;
  kept.prompt_tokens_ = prompt.size();
  kept.missing_ = missing;
  if (flags.prefix_cache.empty()) return kept;
  TL_TRY_ASSIGN(const std::uint64_t budget, flags.prefix_cache_bytes());
  TL_TRY_ASSIGN(kept.facts_, engine.session_facts(*options));
  TL_TRY_ASSIGN(PrefixCache cache, PrefixCache::open(budget, missing));
  kept.path_ = cache.choose(kept.facts_, prompt);
  options->session.path = kept.path_;
  const std::uint64_t rows = rows_bytes(engine, *options, prompt.size());
  // Before it is written, and by every run: the budget may be less than it was.
  if (missing == PrefixCache::Missing::is_made) cache.hold_budget(rows, kept.path_);
  if (rows > budget) {
    notes->push_back("--prefix-cache is too small for this prompt, whose rows alone take " +
                     format_size(rows) + ": it is not kept");
    options->session.path.clear();
    return kept;
  }
  kept.cache_ = std::move(cache);
  kept.look_at_entry(prompt, options);
  if (kept.common_ == prompt.size() || kept.is_extended() ||
      missing != PrefixCache::Missing::is_made)
    return kept;
  // What would be lost of the entry serves others: both are kept.
  const auto branch = kept.cache_->branch(kept.path_, kept.facts_, prompt);
  if (branch) {
    kept.branched_from_ = std::exchange(kept.path_, *branch);
    options->session.path = kept.path_;
    kept.look_at_entry(prompt, options);
  } else {
    notes->push_back("--prefix-cache: the prompt is not kept: " + branch.error().message);
  }
  return kept;
}

void KeptPrompt::look_at_entry(std::span<const int> prompt, CacheOptions* options) {
  const auto entry = read_session(path_);
  if (!entry) return;
  held_ = static_cast<std::uint32_t>(entry->text.tokens.size());
  common_ = common_tokens(entry->text.tokens, prompt);
  options->max_positions = std::max(plain_positions_, entry->held.positions);
  options->course = course_on(*entry, prompt);
}

namespace {

// At most: the rows and their records, which are on the disk; and what a save adds to them.
std::uint64_t bytes_when_saved(const KvCache& cache, const WrittenText& text) {
  constexpr std::uint64_t kRest = std::uint64_t{1} << 20;  // where everything is, and headers
  const MemoryPlan usage = cache.usage();
  std::uint64_t bytes = usage.total("disk") + text.tokens.size() * sizeof(int) +
                        text.logits.size() * sizeof(float) + kRest;
  for (const MemoryLine& line : usage.lines)
    if (line.tier == "host" && line.purpose == "tail") bytes += line.bytes;
  return bytes;
}

}  // namespace

void KeptPrompt::give_up(const Error& why, CacheOptions* options, std::vector<std::string>* notes) {
  const bool useless = why.code == ErrorCode::corrupt;  // else it serves others
  if (missing_ == PrefixCache::Missing::is_made) {
    const bool is_copy = !branched_from_.empty();
    if (useless || is_copy) cache_->remove(path_);
    if (useless && is_copy) cache_->remove(branched_from_);
  }
  std::string said = why.message;
  if (const std::string name = "--session " + path_; said.starts_with(name))
    said.replace(0, name.size(), path_);
  notes->push_back("--prefix-cache is left out of this run: " + said +
                   (useless ? " (it is removed)" : ""));
  cache_.reset();
  options->session.path.clear();
  options->max_positions = plain_positions_;
  options->course = plain_course_;
}

// An entry that begins with the prompt serves it, and longer ones, as it is; and one that would
// lose more than its last few tokens serves others, unless it is a copy.
bool KeptPrompt::is_extended() const {
  return common_ < prompt_tokens_ && (!branched_from_.empty() || common_ >= held_ - held_ / 8);
}

void KeptPrompt::leave(KvCache& cache, std::vector<std::string>* notes) {
  if (const Status left = cache.leave_session(); !left)
    notes->push_back("--prefix-cache: rows that are not kept lie in the kept file until the end: " +
                     left.error().message);
}

void KeptPrompt::begin_reading(KvCache& cache, std::vector<std::string>* notes) const {
  if (cache_ && !is_extended()) leave(cache, notes);
}

void KeptPrompt::read(KvCache& cache, const Timeline& timeline, const WrittenText& text,
                      std::uint64_t seed, std::vector<std::string>* notes) const {
  if (!cache_) return;
  if (!is_extended()) return cache_->used(path_);
  if (const Status kept = keep(cache, timeline, text, seed); !kept)
    notes->push_back("--prefix-cache: the prompt is not kept: " + kept.error().message);
  leave(cache, notes);
}

Status KeptPrompt::keep(KvCache& cache, const Timeline& timeline, const WrittenText& text,
                        std::uint64_t seed) const {
  TL_TRY_ASSIGN(const PrefixCache::Keeping keeping, cache_->begin_keeping());
  const std::uint64_t bytes = bytes_when_saved(cache, text);
  if (!cache_->make_room(keeping, bytes, path_))
    return fail(ErrorCode::exhausted, "it is too small for this prompt, which takes ",
                format_size(bytes));
  TL_TRY(save_session(cache, timeline, text, seed, ""));
  cache_->used(path_);
  cache_->name(keeping, path_, facts_, text.tokens);
  return {};
}

Result<std::optional<SavedSession>> SessionFlags::look() const {
  if (path.empty()) return std::optional<SavedSession>();
  Result<SavedSession> saved = read_session(path);
  if (saved) return std::optional<SavedSession>(std::move(*saved));
  if (saved.error().code == ErrorCode::not_found) return std::optional<SavedSession>();
  return fail(saved.error().code, "--session ", saved.error().message);
}

Status SessionFlags::check_disk(const TierFlags& tiers, const CommandLine& line) const {
  if (path.empty() || !line.given("kv-disk")) return {};
  TL_TRY_ASSIGN(const std::uint64_t bytes, parse_size(tiers.disk, "--kv-disk"));
  if (bytes > 0) return {};
  return fail(ErrorCode::invalid_argument, "--kv-disk ", tiers.disk, " and --session ", path,
              ": a session is on the disk; leave --kv-disk out, or say how large it may get");
}

Result<std::uint64_t> SessionFlags::prefix_cache_bytes() const {
  TL_TRY_ASSIGN(const std::uint64_t bytes, parse_size(prefix_cache, "--prefix-cache"));
  if (bytes > 0 && bytes != kAutoBytes) return bytes;
  return fail(ErrorCode::invalid_argument, "--prefix-cache ", prefix_cache,
              " is no budget: say how much disk prompts may take, as in 2GiB, or leave it out");
}

Status SessionFlags::check_apart_from(const std::string& json) const {
  std::error_code ignored;
  if (path.empty() || (json != path && !std::filesystem::equivalent(json, path, ignored)))
    return {};
  return fail(ErrorCode::invalid_argument, "--json ", json,
              " is the --session: the statistics would be written over it");
}

void SessionFlags::take_method(const SavedSession& saved, const CommandLine& line,
                               MethodFlags* flags) {
  if (line.given("method")) return;
  flags->method = saved.method.name;
  const std::vector<std::string> given = flags->overrides();
  std::vector<std::string> settings;
  for (const std::string& held : saved.method.overrides) {
    const std::string key = held.substr(0, held.find('=') + 1);
    if (std::none_of(given.begin(), given.end(),
                     [&](const std::string& one) { return one.starts_with(key); }))
      settings.push_back(held);
  }
  flags->settings.insert(flags->settings.begin(), settings.begin(), settings.end());
}

Status check_saved(const Engine& engine, const SessionText& saved) {
  const std::uint32_t vocabulary = engine.model().vocabulary;
  for (const int token : saved.tokens)
    if (token < 0 || static_cast<std::uint32_t>(token) >= vocabulary)
      return fail(ErrorCode::corrupt, "the session has token ", token, " of a vocabulary of ",
                  vocabulary, ": it was made by another model");
  if (!saved.logits.empty() && saved.logits.size() != vocabulary)
    return fail(ErrorCode::corrupt, "the session has ", saved.logits.size(),
                " logits for a vocabulary of ", vocabulary, ": it was made by another model");
  return {};
}

Result<Timeline> begin_session(const Engine& engine, KvCache& cache, WrittenText* text,
                               Reuse* reuse) {
  const SessionText saved = *cache.saved();
  TL_TRY(check_saved(engine, saved));
  TL_TRY_ASSIGN(Timeline timeline, cache.resume());
  std::string why;
  reuse->held = reuse->common = timeline.length();
  TL_TRY_ASSIGN(reuse->reused, text->tokens.empty()
                                   ? go_on(cache, saved, &timeline, text, &why)
                                   : compare(cache, saved, &timeline, text, &reuse->common, &why));
  reuse->line = describe(reuse->reused, text->tokens.size(), why);
  return timeline;
}

Status check_in_common(const std::string& path, const Reuse& reuse) {
  if (std::uint64_t{4} * reuse.common >= reuse.held) return {};
  return fail(ErrorCode::unsupported, "--session ", path, " holds ",
              format_counted(reuse.held, "token"), ", and this prompt begins with ",
              format_count(reuse.common),
              " of them: it would lose the others. Name another file, or say 'thermocline session "
              "rm ",
              path, "' first");
}

Status save_session(KvCache& cache, const Timeline& timeline, const WrittenText& text,
                    std::uint64_t seed, const std::string& note) {
  SessionText saved;
  saved.tokens = text.tokens;
  saved.logits = text.logits;
  saved.seed = seed;
  saved.sampler = text.sampler;
  saved.note = note;
  return cache.save(timeline, saved);
}

}  // namespace thermocline
