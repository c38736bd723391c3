// A conversation as the text that a model was trained on. Model files carry a Jinja program; we
// recognise the ones we know and write their output ourselves, byte for byte, and refuse the rest.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/chat_message.h"

namespace thermocline {

class GgufFile;
class Tokenizer;
struct TextPiece;

// Whether the text ends by opening the assistant's turn.
enum class GenerationPrompt : std::uint8_t { no, yes };

// A value: copies, immutable, any thread.
class ChatTemplate {
 public:
  // By the file's tokenizer.chat_template. not_found: it has none (a base model); unsupported: one
  // that is not known. Both messages name the way out: --chat-template NAME and the names.
  static Result<ChatTemplate> recognise(const GgufFile& file);
  // The same for a template's source.
  static Result<ChatTemplate> from_source(std::string_view source);
  // "chatml", "llama3", "gemma"; invalid_argument: none of them.
  static Result<ChatTemplate> named(std::string_view name);
  static std::span<const std::string_view> names();
  // invalid_argument: the vocabulary lacks the template's markers, which would be read as letters.
  Status check_markers(const Tokenizer& tokenizer) const;

  std::string_view name() const;
  // The marker that closes a turn, one token of the vocabulary: "<|im_end|>".
  std::string_view end_of_turn() const;
  // What is said for the system where the conversation does not; "" where nothing is.
  const std::string& default_system() const { return default_system_; }

  // The text to encode with AddSpecial::yes: it never begins with BOS, which the tokenizer adds.
  // Only the template's own markup is to be parsed: a message that spells "<|im_end|>" ends no
  // turn. invalid_argument: a role that the template has no place for, turns that do not alternate
  // where it demands that, a conversation without messages.
  Result<std::vector<TextPiece>> render(std::span<const ChatMessage> messages,
                                        GenerationPrompt prompt) const;

 private:
  enum class Kind : std::uint8_t { chatml, llama3, gemma };
  enum class SystemTurn : std::uint8_t { taken, refused };
  explicit ChatTemplate(Kind kind) : kind_(kind) {}
  using Pieces = std::vector<TextPiece>;
  Pieces render_chatml(std::span<const ChatMessage> messages) const;
  Pieces render_llama3(std::span<const ChatMessage> messages) const;
  Result<Pieces> render_gemma(std::span<const ChatMessage> messages) const;

  Kind kind_;
  std::string default_system_;
  SystemTurn system_ = SystemTurn::taken;
  std::string preamble_;  // Llama 3.1 and later: what stands before the system's text
};

}  // namespace thermocline
