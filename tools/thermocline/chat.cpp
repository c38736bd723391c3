// thermocline chat: a conversation.
#include <unistd.h>
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <optional>

#include "tools/thermocline/command.h"
#include "tools/thermocline/conversation.h"
#include "tools/thermocline/flags.h"
#include "tools/thermocline/generation.h"
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

struct ChatFlags {
  ModelFlags model;
  SamplingFlags sampling;
  MethodFlags method;
  TierFlags tiers;
  SessionFlags session;
  OutputFlags output;
  std::string chat_template = "auto", system, document;
  std::vector<std::string> notes;  // about the command line
};

constexpr const char* kHelp =
    "/help   this text\n"
    "/reset  forget the conversation\n"
    "/exit   leave (Ctrl-D does the same)\n"
    "A line that ends in \\ goes on in the next. Ctrl-C stops an answer.\n";

// Lines of stdin. Not std::getline: it would not come back when we are interrupted.
class LineReader {
 public:
  // A message, of several lines where they end in a backslash; nothing at the end of the input.
  std::optional<std::string> message(bool prompted) {
    std::string text;
    for (;;) {
      if (prompted) std::fputs(text.empty() ? "> " : ". ", stderr);
      const auto line = next_line();
      if (!line) return text.empty() ? std::nullopt : std::optional(text);
      text += *line;
      if (!text.ends_with('\\')) return text;
      text.back() = '\n';
    }
  }

 private:
  std::optional<std::string> next_line() {
    for (;;) {
      if (const std::size_t end = pending_.find('\n'); end != std::string::npos) {
        std::string line = pending_.substr(0, end);
        pending_.erase(0, end + 1);
        return line;
      }
      std::array<char, 4096> piece;
      const Result<std::size_t> count = read_some(STDIN_FILENO, piece);
      if (count.value_or(0) == 0) break;
      pending_.append(piece.data(), *count);
    }
    if (pending_.empty() || interrupted()) return std::nullopt;
    return std::exchange(pending_, {});
  }

  std::string pending_;
};

void print_turn(const Generation& g) {
  std::fprintf(
      stderr, "[%s tokens known, %s read, %s generated at %.1f tokens/s, %.1f %% of rows read%s]\n",
      format_count(g.cached_tokens).c_str(), format_count(g.prefilled_tokens).c_str(),
      format_count(g.tokens.size()).c_str(), g.decode_ms > 0 ? g.steps / g.decode_ms * 1e3 : 0.0,
      share_of(g.decode_cost.rows_read, g.decode_cost.rows_held) * 100,
      g.reason == StopReason::interruption ? ", interrupted" : "");
}

Result<Exit> talk(const ChatFlags& flags, Conversation& conversation, RunRecord* last) {
  const bool by_hand = isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
  if (by_hand && !flags.output.quiet) std::fputs("/help lists the commands.\n", stderr);
  LineReader reader;
  while (const std::optional<std::string> message = reader.message(by_hand)) {
    if (*message == "/exit") break;
    if (message->empty()) continue;
    if (*message == "/help") {
      std::fputs(kHelp, stderr);
      continue;
    }
    if (*message == "/reset") {
      TL_TRY(conversation.reset());
      continue;
    }
    if (message->starts_with('/') && message->find(' ') == std::string::npos) {
      std::fprintf(stderr, "there is no command %s; /help lists them\n",
                   printable(*message).c_str());
      continue;
    }
    last->generation = {};
    const Status status = conversation.answer(*message, &last->generation);
    if (!status && status.error().code == ErrorCode::io) return tl::unexpected(status.error());
    if (!last->generation.text.ends_with('\n')) TL_TRY(write_to_stdout("\n"));
    if (!status) {
      std::fprintf(stderr, "thermocline chat: %s\n", printable(status.error().message).c_str());
      if (!by_hand) return Exit::failure;
    } else if (!flags.output.quiet) {
      print_turn(last->generation);
    }
    if (interrupted() && !by_hand) return Exit::interrupted;
    forget_interruption();
  }
  if (by_hand) std::fputs("\n", stderr);
  return interrupted() ? Exit::interrupted : Exit::success;
}

Result<Exit> chat(ChatFlags& flags, const CommandLine& line) {
  GenerationOptions run;
  TL_TRY_ASSIGN(run.sampling, flags.sampling.sampling_options());
  TL_TRY_ASSIGN(run.progress, parse_progress_style(flags.output.progress));
  TL_TRY_ASSIGN(const std::optional<SavedSession> saved, flags.session.look());
  if (saved) SessionFlags::take_method(*saved, line, &flags.method);
  CacheOptions options = flags.method.cache_options();
  TL_TRY_ASSIGN(options.tiers, flags.tiers.tier_options());
  TL_TRY(flags.method.check(flags.method.method));
  TL_TRY(flags.session.check_apart_from(flags.output.json));
  TL_TRY(flags.session.check_disk(flags.tiers, line));
  TL_TRY_ASSIGN(JsonOutput json_output, JsonOutput::open(flags.output.json));
  if (!flags.document.empty()) {
    TL_TRY_ASSIGN(const std::string document, read_text(flags.document));
    flags.system += (flags.system.empty() ? "" : "\n\n") + document;
  }
  TL_TRY_ASSIGN(const std::unique_ptr<Engine> engine, flags.model.open());
  const ModelInfo& model = engine->model();
  // Asked once without a conversation: a model that cannot chat says so before the first message.
  const ChatMessage probe{"user", "?"};
  TL_TRY(engine->encode_chat({&probe, 1}, flags.chat_template, Engine::Start::add));
  run.context = flags.model.context == 0 ? model.context : flags.model.context;
  options.max_positions = run.context;
  options.session.path = flags.session.path;
  TL_TRY_ASSIGN(const std::unique_ptr<KvCache> cache, engine->open_cache(options));
  run.length = flags.sampling.length;
  run.ignore_end = flags.sampling.ignore_end;
  run.stops = flags.sampling.stops;
  run.show = write_to_stdout;

  RunRecord record;
  record.command = "chat";
  record.method = options.method;
  record.model = &model;
  record.context = run.context;
  record.seed = run.sampling.seed;
  record.notes = flags.notes;
  if (const auto note = note_on_context(run.context, model)) record.notes.push_back(*note);
  record.notes.insert(record.notes.end(), cache->notes().begin(), cache->notes().end());
  // Those first: an answer may be long in coming.
  if (!flags.output.quiet && !flags.output.verbose) print_notes(record.notes);
  Conversation conversation(
      *engine, *cache,
      {flags.system, flags.chat_template, flags.session.path, flags.model.rope_freq_scale, run});
  TL_TRY_ASSIGN(const std::string resumed, conversation.resume());
  if (!resumed.empty() && !flags.output.quiet)
    print_notes(std::array{"--session " + flags.session.path + ": " + resumed});
  TL_TRY_ASSIGN(const Exit exit, talk(flags, conversation, &record));
  record.memory = engine->usage(*cache);
  record.disk_read_cost = cache->disk_read_cost();
  if (flags.output.verbose) print_statistics(record, Detail::full);
  TL_TRY(json_output.write(json_text(statistics_json(record))));
  return exit;
}

}  // namespace

Result<Exit> run_chat(const std::vector<std::string>& arguments) {
  ChatFlags flags;
  CommandLine line(
      "chat", "-m FILE.gguf [options]",
      "A conversation: a line of stdin is a message, the answer goes to stdout. The "
      "text so far stays in the cache, and only what is new is read. /help, /reset and "
      "/exit are commands. With --session it is saved as a message is read, once a minute as it is "
      "answered, and when it has been. The statistics are those of the last answer.");
  auto add = line.group("Conversation").add_options();
  add("system-prompt", po::value(&flags.system)->value_name("TEXT"),
      "what the model is told first");
  add("file,f", po::value(&flags.document)->value_name("FILE"),
      "a document to talk about: it becomes part of the system message");
  add("chat-template", po::value(&flags.chat_template)->value_name("NAME"),
      "auto takes the model's own; or chatml, llama3, gemma (auto)");
  flags.model.add_to(&line);
  flags.sampling.add_to(&line);
  flags.method.add_to(&line);
  flags.tiers.add_to(&line);
  flags.session.add_to(&line);
  flags.output.add_to(&line);
  TL_TRY_ASSIGN(const CommandLine::Outcome outcome, line.parse(arguments));
  if (outcome == CommandLine::Outcome::helped) return Exit::success;
  if (flags.document == "-")
    return fail(ErrorCode::invalid_argument, "-f -: stdin is the conversation; name a file");
  if (flags.output.json == "-")
    return fail(ErrorCode::invalid_argument, "--json -: stdout is the conversation; name a file");
  flags.notes = flags.model.notes();
  for (const auto& more :
       {flags.tiers.notes(flags.session.path), flags.method.notes(), flags.sampling.notes(line)})
    flags.notes.insert(flags.notes.end(), more.begin(), more.end());
  return chat(flags, line);
}

}  // namespace thermocline
