#include "tools/thermocline/conversation.h"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "tools/thermocline/common_tokens.h"
#include "tools/thermocline/interruption.h"
#include "tools/thermocline/session_run.h"
#include "tools/thermocline/size.h"

namespace thermocline {
namespace {

using Json = nlohmann::ordered_json;

}  // namespace

Conversation::Conversation(Engine& engine, KvCache& cache, ConversationOptions options)
    : engine_(engine), cache_(cache), options_(std::move(options)) {}

Status Conversation::reset() {
  messages_.clear();
  if (!options_.system.empty()) messages_.push_back({"system", options_.system});
  return start_over();
}

Status Conversation::start_over() {
  text_ = {};
  timeline_ = Timeline();
  TL_TRY_ASSIGN(timeline_, cache_.start());
  return {};
}

Status Conversation::answer(const std::string& message, Generation* out) {
  messages_.push_back({"user", message});
  const Status status = generate(out);
  if (!status) {
    messages_.pop_back();
    return status;
  }
  messages_.push_back({"assistant", out->text});
  return save(messages_, text_);
}

Result<std::string> Conversation::resume() {
  TL_TRY(reset());
  if (!cache_.saved()) return std::string();
  const SessionText saved = *cache_.saved();
  TL_TRY(read_messages(saved.note));
  timeline_ = Timeline();
  TL_TRY_ASSIGN(timeline_, cache_.resume());
  text_.tokens = saved.tokens;
  text_.tokens.resize(std::min<std::size_t>(saved.tokens.size(), timeline_.length()));
  return "goes on after " + format_counted(messages_.size(), "message") + ", " +
         format_counted(timeline_.length(), "token");
}

Status Conversation::generate(Generation* out) {
  TL_TRY_ASSIGN(
      const std::vector<int> prompt,
      engine_.encode_chat(messages_, options_.chat_template, Engine::Start::add, interrupted));
  const Status fits =
      check_fits(prompt.size(), options_.writing.context, engine_.model(),
                 options_.session.empty() ? options_.rope_freq_scale : Stretch(), "the prompt");
  if (!fits)
    return fail(fits.error().code, fits.error().message, "; /reset forgets the conversation");
  // The timeline holds the last prompt and answer: what still agrees is not read again.
  const std::uint32_t known =
      std::min(common_tokens(text_.tokens, prompt), static_cast<std::uint32_t>(prompt.size() - 1));
  const Result<std::uint32_t> kept = keep_or_start_over(cache_, &timeline_, known);
  // A cut that failed left the timeline as it was, longer perhaps than this prompt; or there is
  // none any more.
  text_.tokens.resize(std::min<std::size_t>(text_.tokens.size(), timeline_.length()));
  TL_TRY(kept);
  text_ = {};
  text_.tokens = prompt;
  text_.sampled_from = static_cast<std::uint32_t>(prompt.size());

  // A message without an answer would be followed by another: until there is some of it the file
  // has what was said before, and the rows of what was read.
  GenerationOptions writing = options_.writing;
  const std::span<const ChatMessage> before = std::span(messages_).first(messages_.size() - 1);
  writing.after_span = [&](std::span<const int> read) {
    WrittenText so_far;
    so_far.tokens.assign(read.begin(), read.end());
    return save(before, so_far);
  };
  writing.after_reading = [&](const WrittenText& so_far) { return save(before, so_far); };
  writing.while_writing = [&](const WrittenText& so_far) {
    std::vector<ChatMessage> messages = messages_;
    messages.push_back({"assistant", out->text});
    return save(messages, so_far);
  };
  const Status status = generate_text(engine_, cache_, timeline_, writing, &text_, out);
  text_.tokens.resize(std::min<std::size_t>(text_.tokens.size(), timeline_.length()));
  return status;
}

Status Conversation::save(std::span<const ChatMessage> messages, const WrittenText& text) {
  if (options_.session.empty()) return {};
  Json said = Json::array();
  for (const ChatMessage& message : messages)
    said.push_back(Json{{"role", message.role}, {"content", message.content}});
  const std::string note =
      Json{{"messages", said}}.dump(-1, ' ', false, Json::error_handler_t::replace);
  return save_session(cache_, timeline_, text, options_.writing.sampling.seed, note);
}

// What save() wrote.
Status Conversation::read_messages(const std::string& note) {
  if (note.empty())
    return fail(ErrorCode::unsupported, "--session ", options_.session,
                " holds a text and no conversation: 'thermocline generate' goes on with it");
  const Json json = Json::parse(note, nullptr, false);
  std::vector<ChatMessage> found;
  if (json.is_object() && json.contains("messages") && json["messages"].is_array())
    for (const Json& message : json["messages"]) {
      if (!message.is_object() || !message.value("role", Json()).is_string() ||
          !message.value("content", Json()).is_string())
        return fail(ErrorCode::corrupt, "--session ", options_.session,
                    ": field note holds a message that is none");
      found.push_back({message["role"], message["content"]});
    }
  const std::string system =
      !found.empty() && found.front().role == "system" ? found.front().content : "";
  if (!found.empty() && !options_.system.empty() && system != options_.system)
    return fail(ErrorCode::invalid_argument, "--session ", options_.session,
                " began with another system message or document: leave --system-prompt and -f "
                "out, or name another file");
  if (!found.empty()) messages_ = std::move(found);
  return {};
}

}  // namespace thermocline
