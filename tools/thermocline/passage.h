// What methods are measured on: a text, and how much of it is read before its next tokens are
// decoded.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/thermocline.h"

namespace thermocline {

struct EvalText {
  std::string name;
  std::vector<int> tokens;
  std::uint32_t held = 0;  // of those, whose rows a session has: they need not be read
};

// A file's text. cancelled: interrupted().
Result<EvalText> read_eval_text(const Engine& engine, const std::string& path);
// A session's own. unsupported: its rows are not full attention's.
Result<EvalText> read_eval_session(const Engine& engine, const std::string& path);

struct Passage {
  const EvalText* text = nullptr;  // borrowed
  std::uint32_t depth = 0;         // tokens read before the first step
  std::uint32_t steps = 0;         // decoded, each held against the token after it

  std::span<const int> read() const { return std::span(text->tokens).first(depth); }
  int token(std::uint32_t step) const { return text->tokens[depth + step]; }
  int next(std::uint32_t step) const { return text->tokens[depth + step + 1]; }
};

// `depth` 0: all but the steps, as far as `context` goes. exhausted: too short a text, or context,
// for `decoding`, as it was asked for.
Result<Passage> cut_passage(const EvalText& text, std::uint32_t depth, std::uint32_t steps,
                            std::uint32_t context, const std::string& decoding);

}  // namespace thermocline
