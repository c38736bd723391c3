#include "tools/thermocline/haystack.h"

#include <algorithm>

namespace thermocline {
namespace {

Result<std::vector<int>> tokens_of(const Engine& engine, const std::string& text,
                                   Engine::Start start) {
  return engine.encode(text, Engine::Special::as_text, start);
}

// The first place from `at` on where a line or a sentence has ended; `at` where none is near.
Result<std::size_t> end_of_sentence(const Engine& engine, std::span<const int> text,
                                    std::size_t at) {
  constexpr std::size_t kNear = 100;
  for (std::size_t i = at; i < std::min(text.size(), at + kNear); ++i) {
    TL_TRY_ASSIGN(const std::string token, engine.decode(text.subspan(i, 1)));
    if (token.find('\n') != std::string::npos || token.ends_with('.')) return i + 1;
  }
  return at;
}

}  // namespace

Result<std::vector<int>> hide(const Engine& engine, const TaskSample& sample,
                              std::span<const int> text, std::uint32_t depth,
                              std::uint32_t number) {
  TL_TRY_ASSIGN(std::vector<int> tokens,
                tokens_of(engine, sample.introduction, Engine::Start::add));
  std::vector<std::vector<int>> hidden;
  std::size_t taken = tokens.size();
  for (const TaskSample::Hidden& one : sample.hidden) {
    TL_TRY_ASSIGN(hidden.emplace_back(), tokens_of(engine, one.text, Engine::Start::leave_out));
    taken += hidden.back().size();
  }
  if (taken >= depth)
    return fail(ErrorCode::exhausted, "--depth ", depth,
                " leaves no room for a text: the task takes ", taken, " tokens itself");
  const std::size_t room = depth - taken;
  if (text.size() < room)
    return fail(ErrorCode::exhausted, text.size(), " tokens, and ", room,
                " are needed around the task for --depth ", depth);
  const std::size_t spare = text.size() - room;
  const std::span<const int> hay =
      text.subspan(spare == 0 ? 0 : std::size_t{number} * room % (spare + 1), room);
  std::size_t at = 0;
  for (std::size_t i = 0; i < hidden.size(); ++i) {
    const double place = sample.hidden[i].place * static_cast<double>(room);
    TL_TRY_ASSIGN(const std::size_t end,
                  end_of_sentence(engine, hay, std::min(static_cast<std::size_t>(place), room)));
    const std::size_t until = std::max(at, end);
    tokens.insert(tokens.end(), hay.begin() + static_cast<std::ptrdiff_t>(at),
                  hay.begin() + static_cast<std::ptrdiff_t>(until));
    tokens.insert(tokens.end(), hidden[i].begin(), hidden[i].end());
    at = until;
  }
  tokens.insert(tokens.end(), hay.begin() + static_cast<std::ptrdiff_t>(at), hay.end());
  return tokens;
}

}  // namespace thermocline
