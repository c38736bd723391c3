// thermocline session: what is kept in session files.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>

#include "tools/thermocline/command.h"
#include "tools/thermocline/command_line.h"
#include "tools/thermocline/interruption.h"
#include "tools/thermocline/json_output.h"
#include "tools/thermocline/prefix_cache.h"
#include "tools/thermocline/printable.h"
#include "tools/thermocline/session_build.h"
#include "tools/thermocline/size.h"
#include "tools/thermocline/statistics.h"
#include "tools/thermocline/suggestion.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;
namespace po = boost::program_options;
using Json = nlohmann::ordered_json;

std::string fact(const SavedSession& session, const std::string& name) {
  for (const SessionFact& one : session.facts)
    if (one.name == name) return one.value;
  return {};
}

std::string method_text(const SavedSession& session) {
  std::string text = session.method.name;
  for (const std::string& one : session.method.overrides) text += " --method-set " + one;
  return text;
}

std::string time_text(std::time_t at) {
  char text[32];
  std::tm local{};
  if (!::localtime_r(&at, &local)) return "?";
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M", &local);
  return text;
}

void say(const Error& error) {
  std::fprintf(stderr, "thermocline session: %s\n", printable(error.message).c_str());
}

Json session_json(const std::string& path, const SavedSession& session) {
  Json facts = Json::object();
  for (const SessionFact& one : session.facts) facts[one.name] = one.value;
  return Json{{"path", path},
              {"tokens", session.text.tokens.size()},
              {"positions", session.held.positions},
              {"method", session.method.name},
              {"method_overrides", session.method.overrides},
              {"facts", facts},
              {"seed", session.text.seed},
              {"layers", session.layers},
              {"segments", session.segments},
              {"saves", session.saves},
              {"disk_bytes", session.disk_bytes},
              {"saved_at", session.saved_at}};
}

// Session files of a folder, by name; what else is there is passed over, and what cannot be read
// named.
Result<std::vector<std::pair<std::string, SavedSession>>> sessions_in(const std::string& folder) {
  std::error_code error;
  std::vector<std::pair<std::string, SavedSession>> found;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code ignored;
    if (entry->is_symlink(ignored) || !entry->is_regular_file(ignored)) continue;
    if (interrupted()) return fail(ErrorCode::cancelled, folder, ": listing was stopped");
    Result<SavedSession> session = read_session(entry->path().string());
    if (session)
      found.emplace_back(entry->path().string(), std::move(*session));
    else if (session.error().code == ErrorCode::io)
      say(session.error());
  }
  if (error) return fail(ErrorCode::not_found, folder, ": could not be listed: ", error.message());
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  return found;
}

Result<Exit> list(const std::vector<std::string>& folders, const std::string& json_path) {
  TL_TRY_ASSIGN(JsonOutput output, JsonOutput::open(json_path));
  Json all = Json::array();
  for (const std::string& folder : folders) {
    TL_TRY_ASSIGN(const auto found, sessions_in(folder));
    if (found.empty() && json_path != "-")
      std::fprintf(stderr, "no session in %s\n", printable(folder).c_str());
    for (const auto& [path, session] : found) {
      all.push_back(session_json(path, session));
      if (json_path == "-") continue;
      std::printf("%-32s %10s tokens %10s  %s  %s, %s\n", printable(path).c_str(),
                  format_count(session.text.tokens.size()).c_str(),
                  format_size(session.disk_bytes).c_str(), time_text(session.saved_at).c_str(),
                  printable(session.method.name).c_str(),
                  printable(fact(session, "model")).c_str());
    }
  }
  TL_TRY(output.write(json_text(Json{{"schema", "thermocline/sessions/1"}, {"sessions", all}})));
  return Exit::success;
}

Result<Exit> show(const std::vector<std::string>& files, const std::string& json_path) {
  TL_TRY_ASSIGN(JsonOutput output, JsonOutput::open(json_path));
  Json all = Json::array();
  for (const std::string& path : files) {
    TL_TRY_ASSIGN(const SavedSession session, read_session(path));
    all.push_back(session_json(path, session));
    if (json_path == "-") continue;
    const auto line = [](const char* title, const std::string& text) {
      std::printf("%-10s %s\n", title, printable(text).c_str());
    };
    line("session", path + ", saved " + time_text(session.saved_at) + ", " +
                        format_counted(session.saves, "time") + " so far");
    line("text", format_counted(session.text.tokens.size(), "token") + ", " +
                     format_count(session.held.positions) + " of them in the cache");
    line("method", method_text(session));
    line("disk", format_size(session.disk_bytes) + ": " +
                     format_counted(session.segments, "segment") + " in " +
                     format_counted(session.layers, "layer"));
    for (const SessionFact& one : session.facts) line(one.name.c_str(), one.value);
  }
  TL_TRY(output.write(json_text(Json{{"schema", "thermocline/sessions/1"}, {"sessions", all}})));
  return Exit::success;
}

Result<Exit> verify(const std::vector<std::string>& files) {
  Exit exit = Exit::success;
  for (const std::string& path : files) {
    const Result<SessionCheck> checked = verify_session(path, interrupted);
    if (!checked) {
      if (checked.error().code == ErrorCode::cancelled) return tl::unexpected(checked.error());
      say(checked.error());
      exit = Exit::failure;
      continue;
    }
    const SessionCheck& found = *checked;
    for (const std::string& damage : found.damage)
      std::printf("%s: %s\n", printable(path).c_str(), printable(damage).c_str());
    std::printf("%s: %s, %s: %s\n", printable(path).c_str(),
                format_counted(found.pages, "page").c_str(), format_size(found.bytes).c_str(),
                found.damage.empty() ? "sound" : "damaged");
    if (!found.damage.empty()) exit = Exit::failure;
  }
  return exit;
}

Result<Exit> remove(const std::vector<std::string>& files) {
  for (const std::string& path : files) {
    TL_TRY(remove_session(path));
    std::fprintf(stderr, "removed %s\n", printable(path).c_str());
  }
  return Exit::success;
}

}  // namespace

Result<Exit> run_session(const std::vector<std::string>& arguments) {
  if (!arguments.empty() && arguments.front() == "build")
    return run_session_build({arguments.begin() + 1, arguments.end()});
  std::string json;
  std::vector<std::string> words;
  CommandLine line("session",
                   "ls [FOLDER...] | show FILE... | verify FILE... | rm FILE... | build ...",
                   "Session files, which generate and chat make with --session: ls lists those of "
                   "a folder (this one, and the prompts that --prefix-cache keeps), show says what "
                   "they are, verify reads them and compares "
                   "every checksum (exit code 1 where one differs), rm removes them, and nothing "
                   "that is no session. 'thermocline session build --help' says how long contexts "
                   "are made.");
  line.accept_positional(&words, 1000);
  line.group("Output").add_options()("json", po::value(&json)->value_name("FILE"),
                                     "of ls and show: write it as JSON; -: to stdout instead");
  TL_TRY_ASSIGN(const CommandLine::Outcome outcome, line.parse(arguments));
  if (outcome == CommandLine::Outcome::helped) return Exit::success;
  if (words.empty())
    return fail(ErrorCode::invalid_argument, "say what to do: ls, show, verify, rm or build");
  static const std::vector<std::string> kWhat = {"ls", "show", "verify", "rm", "build"};
  const std::string what = words.front();
  std::vector<std::string> names(words.begin() + 1, words.end());
  if (std::none_of(names.begin(), names.end(), [](const auto& name) { return name.empty(); })) {
    if (what == "ls") {
      if (names.empty()) {
        names.emplace_back(".");
        const auto prefixes = PrefixCache::default_folder();
        std::error_code ignored;
        if (prefixes && fs::is_directory(*prefixes, ignored)) names.push_back(*prefixes);
      }
      return list(names, json);
    }
    if (what == "show" || what == "verify" || what == "rm") {
      if (names.empty())
        return fail(ErrorCode::invalid_argument, what, " needs a file: thermocline session ", what,
                    " FILE");
      return what == "show" ? show(names, json) : what == "verify" ? verify(names) : remove(names);
    }
  } else {
    return fail(ErrorCode::invalid_argument, "'' names no file");
  }
  return fail(ErrorCode::invalid_argument, "there is no '", what, "'", suggestion(what, kWhat),
              ": ls, show, verify, rm or build");
}

}  // namespace thermocline
