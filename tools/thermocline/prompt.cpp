#include "tools/thermocline/prompt.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "tools/thermocline/input.h"
#include "tools/thermocline/interruption.h"

namespace thermocline {
namespace {

namespace po = boost::program_options;

constexpr std::size_t kMostBytes = std::size_t{1} << 30;

Result<std::string> read_all(int descriptor, const std::string& name) {
  std::string text;
  std::array<char, 1 << 16> piece;
  for (;;) {
    const Result<std::size_t> count = read_some(descriptor, piece);
    if (!count && count.error().code == ErrorCode::cancelled) return tl::unexpected(count.error());
    if (!count) return fail(count.error().code, name, ": ", count.error().message);
    if (*count == 0) return text;
    text.append(piece.data(), *count);
    if (text.size() > kMostBytes)
      return fail(ErrorCode::exhausted, name, ": more than ", kMostBytes, " bytes of text");
  }
}

}  // namespace

Result<std::string> read_text(const std::string& path) {
  if (path == "-") return read_all(STDIN_FILENO, "stdin");
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    // A pipe without a writer is waited for.
    if (errno == EINTR && interrupted()) return fail(ErrorCode::cancelled, "interrupted");
    return fail(errno == ENOENT ? ErrorCode::not_found : ErrorCode::io, path, ": ",
                std::strerror(errno));
  }
  Result<std::string> text = read_all(file, path);
  ::close(file);
  return text;
}

std::string resolve_escapes(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      out += text[i];
      continue;
    }
    const char next = text[++i];
    unsigned byte = 0;
    if (next == 'n')
      out += '\n';
    else if (next == 't')
      out += '\t';
    else if (next == 'r')
      out += '\r';
    else if (next == '\\' || next == '"' || next == '\'')
      out += next;
    else if (const char* hex = text.data() + i + 1;
             next == 'x' && i + 2 < text.size() &&
             std::from_chars(hex, hex + 2, byte, 16).ptr == hex + 2) {
      out += static_cast<char>(byte);
      i += 2;
    } else {
      out += '\\';
      out += next;
    }
  }
  return out;
}

void PromptFlags::add_to(CommandLine* line) {
  auto add = line->group("Prompt").add_options();
  const auto value = [](std::string* into, const char* name) {
    return po::value(into)->value_name(name);
  };
  add("prompt,p", value(&text, "TEXT"), "the prompt; with -f it follows the file's text");
  add("file,f", value(&file, "FILE"), "read the prompt from a file; -: from stdin");
  add("escape,e", po::bool_switch(&escapes),
      "\\n, \\t, \\r, \\xHH, \\\\, \\\" and \\' in -p mean what they stand for; any other "
      "backslash stays");
  add("chat-template", value(&chat_template, "NAME"),
      "wrap the prompt as a user's message: auto takes the model's own template, a name (chatml, "
      "llama3, gemma) another (none: the text is continued as it is)");
  add("system-prompt", value(&system, "TEXT"), "a system message, with --chat-template");
  add("no-display-prompt", po::bool_switch(&no_display_prompt),
      "accepted: stdout never has anything but the generated text");
}

Result<std::string> PromptFlags::read() const {
  const std::string words = escapes ? resolve_escapes(text) : text;
  if (file.empty()) return words;
  TL_TRY_ASSIGN(std::string document, read_text(file));
  if (words.empty()) return document;
  while (!document.empty() && document.back() == '\n') document.pop_back();
  return document + "\n\n" + words;
}

}  // namespace thermocline
