// The options that subcommands share: one table a group, the variables that it fills in, and what
// they mean to the library. A name that llama.cpp has means here what it means there.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/thermocline.h"
#include "tools/thermocline/command_line.h"
#include "tools/thermocline/progress.h"

namespace thermocline {

struct ModelFlags {
  std::string model;
  int threads = 0;
  std::uint32_t context = 0;
  std::string isa = "auto", rope_scaling = "model", gpu_layers = "0", flash_attention = "auto";
  std::uint32_t main_gpu = 0;
  float rope_freq_scale = 0, rope_freq_base = 0;
  int batch = 0, ubatch = 0;

  void add_to(CommandLine* line);
  // The same with -t as a list, for commands that sweep over it.
  void add_without_threads_to(CommandLine* line);
  Result<EngineOptions> engine_options() const;
  Result<std::unique_ptr<Engine>> open() const;
  // What was asked for and has no effect, a line each.
  std::vector<std::string> notes() const;
};

struct TierFlags {
  std::string host = "auto", disk = "0", device = "none", device_size = "0", directory,
              io_backend = "auto";
  bool no_offload = false;

  void add_to(CommandLine* line);
  // The options that are not budgets, for commands that sweep over those.
  void add_without_budgets_to(boost::program_options::options_description* group);
  // What was asked for and has no effect, a line each; `session`: rows are in a session's file.
  std::vector<std::string> notes(const std::string& session = {}) const;
  // Makes the user's cache folder where that is needed and missing.
  Result<TierOptions> tier_options() const;
};

struct MethodFlags {
  std::string method = "exact", directory;
  std::vector<std::string> settings;
  std::string keys_type, values_type;  // empty: as the method and its settings say

  void add_to(CommandLine* line);
  void add_without_method_to(boost::program_options::options_description* group);
  // All that is said over the method's file, a "section.name=value" each.
  std::vector<std::string> overrides() const;
  // invalid_argument: a method that is misspelt, or a file that is none; a type that is not known;
  // what is said over the file, `more` last, and does not go with it. Any other fault of the file.
  Status check(const std::string& name, std::span<const std::string> more = {}) const;
  // What was asked for and has no effect, a line each.
  std::vector<std::string> notes() const;
  // Everything but the tiers and the positions.
  CacheOptions cache_options() const;

 private:
  Status check_name(const std::string& name) const;
  Status check_type(const char* flag, const std::string& type, const std::string& key) const;
};

struct SamplingFlags {
  SamplingOptions options;
  std::int64_t seed = -1;
  bool ignore_end = false;
  int length = -1;
  std::vector<std::string> stops;

  void add_to(CommandLine* line);
  // Whether any of what options_in() a sampler's state holds was given; `line` was parsed.
  static bool given(const CommandLine& line);
  // What was asked for and has no effect, a line each; `line` was parsed.
  std::vector<std::string> notes(const CommandLine& line) const;
  // Draws the seed when none was given.
  Result<SamplingOptions> sampling_options() const;
};

struct OutputFlags {
  std::string json, progress = "auto";
  bool quiet = false, verbose = false;

  void add_to(CommandLine* line);
};

// At once: text is seen as it comes.
Status write_to_stdout(std::string_view text);

// Where the methods' files are: the given folder, else the one beside this program; "" leaves it to
// the library.
std::string method_directory(const std::string& given);
// What --method-dir names is a folder; "": it was not given.
Status check_method_directory(const std::string& given);
// That fewer threads than these compute, where that is so.
std::optional<std::string> note_on_threads(int threads);

}  // namespace thermocline
