#include "runtime/model/chat_template.h"

#include <algorithm>
#include <array>

#include "runtime/model/gguf.h"
#include "runtime/model/quoted.h"
#include "runtime/model/tokenizer.h"

namespace thermocline {
namespace {

constexpr std::array<std::string_view, 3> kNames = {"chatml", "llama3", "gemma"};
constexpr std::array<std::string_view, 3> kStarts = {"<|im_start|>", "<|start_header_id|>",
                                                     "<start_of_turn>"};
constexpr std::array<std::string_view, 3> kEnds = {"<|im_end|>", "<|eot_id|>", "<end_of_turn>"};

// Templates that use ChatML's or Llama 3's markers and write something else with them. Each is a
// piece of such a template's source.
constexpr std::string_view kDeviations[] = {
    "<|im_sep|>",             // Phi 4: between role and content
    "<|im_middle|>",          // Kimi
    "Knowledge Cutoff Date",  // SmolLM3: a system turn made of settings
    "assistant\\n<think>",    // a turn that opens with thinking
    "assistant\n<think>",
    "'<think>\\n' }}",
    ">>>",                          // Functionary: recipients
    "<function=example_function",   // and its other form
    "You are a function calling",   // Hermes: tools always
    "Functions are not supported",  // FireFunction
    "functools",
};

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

std::string names_and_flag() { return "choose one with --chat-template chatml, llama3 or gemma"; }

// What the source has between "<|im_start|>system\n" and "<|im_end|>" within one literal: that is
// said where a conversation has no system turn.
std::string default_system_of(std::string_view source) {
  constexpr std::string_view kStart = "<|im_start|>system";
  for (std::size_t at = source.find(kStart); at != std::string_view::npos;
       at = source.find(kStart, at + 1)) {
    std::string_view rest = source.substr(at + kStart.size());
    if (rest.starts_with("\\n"))
      rest.remove_prefix(2);
    else if (rest.starts_with('\n'))
      rest.remove_prefix(1);
    else
      continue;
    const std::string_view text = rest.substr(0, rest.find_first_of("'\"{}<\\"));
    if (!text.empty() && rest.substr(text.size()).starts_with("<|im_end|>"))
      return std::string(text);
  }
  return "";
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpaces = " \t\n\r\v\f";
  const std::size_t first = text.find_first_not_of(kSpaces);
  if (first == std::string_view::npos) return "";
  return text.substr(first, text.find_last_not_of(kSpaces) - first + 1);
}

template <typename... Parts>
TextPiece markup(const Parts&... parts) {
  TextPiece piece{"", ParseSpecial::yes};
  (piece.text.append(parts), ...);
  return piece;
}
TextPiece plain(std::string_view text) { return {std::string(text), ParseSpecial::no}; }

Status check_role(const ChatMessage& message, std::size_t index) {
  constexpr std::string_view kRoles[] = {"system", "user", "assistant"};
  if (std::find(std::begin(kRoles), std::end(kRoles), message.role) != std::end(kRoles)) return {};
  return fail(ErrorCode::invalid_argument, "message ", index, " has the role ",
              quoted(message.role), ", known are system, user and assistant");
}

}  // namespace

std::span<const std::string_view> ChatTemplate::names() { return kNames; }
std::string_view ChatTemplate::name() const { return kNames[static_cast<std::size_t>(kind_)]; }
std::string_view ChatTemplate::end_of_turn() const {
  return kEnds[static_cast<std::size_t>(kind_)];
}

Result<ChatTemplate> ChatTemplate::named(std::string_view name) {
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end())
    return fail(ErrorCode::invalid_argument, "there is no chat template ", quoted(name), ": ",
                names_and_flag());
  return ChatTemplate(static_cast<Kind>(found - kNames.begin()));
}

Status ChatTemplate::check_markers(const Tokenizer& tokenizer) const {
  for (const std::string_view marker : {kStarts[static_cast<std::size_t>(kind_)], end_of_turn()})
    if (!tokenizer.find(marker))
      return fail(ErrorCode::invalid_argument, "the chat template ", name(), " needs the token ",
                  marker,
                  ", which this model's vocabulary does not have: choose another with "
                  "--chat-template, or leave it out");
  return {};
}

Result<ChatTemplate> ChatTemplate::from_source(std::string_view source) {
  const bool deviates = std::any_of(std::begin(kDeviations), std::end(kDeviations),
                                    [&](std::string_view part) { return contains(source, part); });
  if (!deviates && contains(source, "<|start_header_id|>") && contains(source, "<|eot_id|>")) {
    ChatTemplate out(Kind::llama3);
    // A template without a clock says this day; so do we always, and an answer can be repeated.
    if (contains(source, "Cutting Knowledge Date: December 2023"))
      out.preamble_ = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";
    return out;
  }
  if (!deviates && contains(source, "<|im_start|>") && contains(source, "<|im_end|>")) {
    ChatTemplate out(Kind::chatml);
    out.default_system_ = default_system_of(source);
    return out;
  }
  if (!deviates && contains(source, "<start_of_turn>") && contains(source, "<end_of_turn>")) {
    ChatTemplate out(Kind::gemma);
    if (contains(source, "System role not supported")) out.system_ = SystemTurn::refused;
    return out;
  }
  return fail(ErrorCode::unsupported, "the chat template ", quoted(source, 60),
              " is not one that this build knows: ", names_and_flag());
}

Result<ChatTemplate> ChatTemplate::recognise(const GgufFile& file) {
  if (!file.has("tokenizer.chat_template"))
    return fail(
        ErrorCode::not_found, file.name(),
        ": has no tokenizer.chat_template, so it may not be a chat model: ", names_and_flag());
  TL_TRY_ASSIGN(const auto source, file.get<std::string_view>("tokenizer.chat_template"));
  auto out = from_source(source);
  if (!out)
    return fail(out.error().code, file.name(), ": tokenizer.chat_template: ", out.error().message);
  return out;
}

Result<std::vector<TextPiece>> ChatTemplate::render(std::span<const ChatMessage> messages,
                                                    GenerationPrompt prompt) const {
  if (messages.empty()) return fail(ErrorCode::invalid_argument, "a conversation without messages");
  for (std::size_t i = 0; i < messages.size(); ++i) TL_TRY(check_role(messages[i], i));
  Pieces out;
  std::string_view reply;
  switch (kind_) {
    case Kind::chatml:
      out = render_chatml(messages);
      reply = "<|im_start|>assistant\n";
      break;
    case Kind::llama3:
      out = render_llama3(messages);
      reply = "<|start_header_id|>assistant<|end_header_id|>\n\n";
      break;
    case Kind::gemma: {
      TL_TRY_ASSIGN(out, render_gemma(messages));
      reply = "<start_of_turn>model\n";
      break;
    }
  }
  if (prompt == GenerationPrompt::yes) out.push_back(markup(reply));
  return out;
}

ChatTemplate::Pieces ChatTemplate::render_chatml(std::span<const ChatMessage> messages) const {
  Pieces out;
  const auto turn = [&out](std::string_view role, std::string_view content) {
    out.push_back(markup("<|im_start|>", role, "\n"));
    out.push_back(plain(content));
    out.push_back(markup("<|im_end|>\n"));
  };
  if (messages.front().role != "system" && !default_system_.empty())
    turn("system", default_system_);
  for (const ChatMessage& message : messages) turn(message.role, message.content);
  return out;
}

ChatTemplate::Pieces ChatTemplate::render_llama3(std::span<const ChatMessage> messages) const {
  Pieces out;
  const auto turn = [&out](std::string_view role, std::string_view before,
                           std::string_view content) {
    out.push_back(markup("<|start_header_id|>", role, "<|end_header_id|>\n\n"));
    out.push_back(plain(before));
    out.push_back(plain(trimmed(content)));
    out.push_back(markup("<|eot_id|>"));
  };
  if (!preamble_.empty()) {
    const bool system = messages.front().role == "system";
    turn("system", preamble_, system ? messages.front().content : "");
    if (system) messages = messages.subspan(1);
  }
  for (const ChatMessage& message : messages) turn(message.role, "", message.content);
  return out;
}

// Gemma has no system turn: its text opens the first turn of the user.
Result<ChatTemplate::Pieces> ChatTemplate::render_gemma(
    std::span<const ChatMessage> messages) const {
  Pieces out;
  std::string prefix;
  if (messages.front().role == "system") {
    if (system_ == SystemTurn::refused)
      return fail(
          ErrorCode::invalid_argument,
          "this model was trained without a system's text: say it in the user's first turn");
    prefix = messages.front().content + "\n\n";
    messages = messages.subspan(1);
    if (messages.empty())
      return fail(ErrorCode::invalid_argument,
                  "Gemma puts the system's text into the user's first turn, and there is none");
  }
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const std::string_view due = i % 2 == 0 ? "user" : "assistant";
    if (messages[i].role != due)
      return fail(ErrorCode::invalid_argument, "turn ", i, " is the ", messages[i].role,
                  "'s, Gemma's turns alternate and this one is the ", due, "'s");
    out.push_back(markup("<start_of_turn>", i % 2 == 0 ? "user\n" : "model\n"));
    if (i == 0) out.push_back(plain(prefix));
    out.push_back(plain(trimmed(messages[i].content)));
    out.push_back(markup("<end_of_turn>\n"));
  }
  return out;
}

}  // namespace thermocline
