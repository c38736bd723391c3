// A run on a session file: what it brings along, what of it a text can go on from, and what is
// saved.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/thermocline.h"
#include "tools/thermocline/command_line.h"
#include "tools/thermocline/flags.h"
#include "tools/thermocline/generation.h"
#include "tools/thermocline/prefix_cache.h"

namespace thermocline {

struct SessionFlags {
  std::string path;
  std::string prefix_cache;  // SIZE; "": none

  void add_to(CommandLine* line);
  // With --prefix-cache too, for a command whose prompts may be kept.
  void add_with_prefix_cache_to(CommandLine* line);
  // What the file holds; nothing: no session was asked for, or there is no such file yet.
  Result<std::optional<SavedSession>> look() const;
  // The file that the statistics go to must be another one.
  Status check_apart_from(const std::string& json) const;
  // A session is on the disk: none for it is a contradiction; `line` was parsed.
  Status check_disk(const TierFlags& tiers, const CommandLine& line) const;
  // Of --prefix-cache, which was given; invalid_argument: it is not the size of a budget.
  Result<std::uint64_t> prefix_cache_bytes() const;
  // The method that the session was made with, where the command line names none, and what it was
  // made with over the method's file, as far as the command line does not say otherwise.
  static void take_method(const SavedSession& saved, const CommandLine& line, MethodFlags* flags);
};

// How much of a text was there already, and why not more: "reused 7,500 of 7,650 tokens; ...".
struct Reuse {
  std::uint32_t reused = 0;
  std::string line;
  // Tokens that the session held, and those of them that the text begins with.
  std::uint32_t held = 0, common = 0;
};

// corrupt: what the file says of its text is not of this model's vocabulary.
Status check_saved(const Engine& engine, const SessionText& saved);

// A timeline that holds as much as can be of `text`, whose tokens are what is to be read (none: the
// session's own text is to go on), and the rest of `text` as the session left it. `cache` has
// something saved, and no timeline.
Result<Timeline> begin_session(const Engine& engine, KvCache& cache, WrittenText* text,
                               Reuse* reuse);

// How the text comes where a file has one, as begin_session() takes it: the prompt, or without one
// the file's own text, which goes on. Nothing: not all of what the file holds stays.
std::optional<Course> course_on(const SavedSession& saved, std::span<const int> prompt);

// A prompt and what --prefix-cache keeps of it: the session file that it is read with, and whether
// it has come to hold more. It is there to make a run faster: where it fails, the run goes on
// without it, and a note says why.
class KeptPrompt {
 public:
  // Without --prefix-cache: the session's path, for `options`. The prompt's tokens are those of a
  // run with these options.
  static Result<KeptPrompt> begin(const SessionFlags& flags, const Engine& engine,
                                  std::span<const int> prompt, PrefixCache::Missing missing,
                                  CacheOptions* options, std::vector<std::string>* notes);
  bool is_used() const { return cache_.has_value(); }
  // What it was begun with could not be gone on from: an entry that is damaged is removed, and
  // `options` are those of a run without --prefix-cache. Where a missing folder stays so does it.
  void give_up(const Error& why, CacheOptions* options, std::vector<std::string>* notes);
  // `cache` has been opened with its options, and what it held resumed: where an entry serves
  // others as it is, nothing is written to it.
  void begin_reading(KvCache& cache, std::vector<std::string>* notes) const;
  // The prompt has been read: it is kept, if there is room, unless an entry held it already. What
  // comes after it is not.
  void read(KvCache& cache, const Timeline& timeline, const WrittenText& text, std::uint64_t seed,
            std::vector<std::string>* notes) const;

 private:
  bool is_extended() const;
  // What `path_` holds, and shares with the prompt.
  void look_at_entry(std::span<const int> prompt, CacheOptions* options);
  static void leave(KvCache& cache, std::vector<std::string>* notes);
  Status keep(KvCache& cache, const Timeline& timeline, const WrittenText& text,
              std::uint64_t seed) const;

  std::optional<PrefixCache> cache_;
  std::vector<SessionFact> facts_;
  std::string path_;
  std::size_t prompt_tokens_ = 0;
  std::uint32_t held_ = 0, common_ = 0;  // tokens of the entry, and those the prompt begins with
  std::string branched_from_;            // it is a copy of that one, which serves others
  PrefixCache::Missing missing_ = PrefixCache::Missing::is_made;
  std::uint32_t plain_positions_ = 0;  // of a run without it
  std::optional<Course> plain_course_;
};

// A prompt that has little in common with what the file holds is more likely a mistake than meant:
// unsupported, with what to do.
Status check_in_common(const std::string& path, const Reuse& reuse);

// Saves where the text has come to. `note` is the command's own.
Status save_session(KvCache& cache, const Timeline& timeline, const WrittenText& text,
                    std::uint64_t seed, const std::string& note);

}  // namespace thermocline
