// The text that a command is given: words, a file or stdin.
#pragma once

#include <string>
#include <string_view>

#include "kernels/base/error.h"
#include "tools/thermocline/command_line.h"

namespace thermocline {

// A whole file, or stdin where the path is "-". cancelled: interrupted().
Result<std::string> read_text(const std::string& path);

// \n \t \r \\ \" \' and \xHH become what they stand for; other backslashes stay.
std::string resolve_escapes(std::string_view text);

struct PromptFlags {
  std::string text, file, chat_template, system;
  bool escapes = false, no_display_prompt = false;

  void add_to(CommandLine* line);
  bool given() const { return !text.empty() || !file.empty(); }
  // The file's text and then -p's, a blank line between them.
  Result<std::string> read() const;
};

}  // namespace thermocline
