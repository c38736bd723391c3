#include "tools/thermocline/passage.h"

#include <algorithm>
#include <filesystem>

#include "tools/thermocline/interruption.h"
#include "tools/thermocline/method_list.h"
#include "tools/thermocline/printable.h"
#include "tools/thermocline/prompt.h"
#include "tools/thermocline/session_run.h"

namespace thermocline {

Result<EvalText> read_eval_text(const Engine& engine, const std::string& path) {
  TL_TRY_ASSIGN(const std::string text, read_text(path));
  TL_TRY_ASSIGN(std::vector<int> tokens,
                engine.encode(text, Engine::Special::as_text, Engine::Start::add, interrupted));
  return EvalText{std::filesystem::path(path).filename(), std::move(tokens)};
}

Result<EvalText> read_eval_session(const Engine& engine, const std::string& path) {
  Result<SavedSession> saved = read_session(path);
  if (!saved) return fail(saved.error().code, "--session ", saved.error().message);
  if (saved->method.name != "exact" || !saved->method.overrides.empty())
    return fail(ErrorCode::unsupported, "--session ", path, " was made with ",
                printable(ListedMethod{saved->method.name, saved->method.overrides}.label()),
                ", and full attention needs every row as it was: name one that was made with "
                "--method exact");
  TL_TRY(check_saved(engine, saved->text));
  return EvalText{std::filesystem::path(path).filename(), std::move(saved->text.tokens),
                  saved->held.positions};
}

Result<Passage> cut_passage(const EvalText& text, std::uint32_t depth, std::uint32_t steps,
                            std::uint32_t context, const std::string& decoding) {
  // All of a text, or of a session, which has no --depth.
  const std::string asked =
      (depth > 0 ? "--depth " + std::to_string(depth) + " and " : "") + decoding;
  // The last step is held against the token after the one that it is fed.
  const std::uint64_t least = std::uint64_t{std::max(depth, 1u)} + steps + 1;
  if (text.tokens.size() < least)
    return fail(ErrorCode::exhausted, text.name, ": ", text.tokens.size(), " tokens, and ", least,
                " are needed for ", asked);
  if (std::uint64_t{std::max(depth, 1u)} + steps > context)
    return fail(ErrorCode::exhausted, asked, " do not fit the context of ", context, " (-c)");
  const auto room =
      static_cast<std::uint32_t>(std::min<std::size_t>(text.tokens.size() - 1, context) - steps);
  return Passage{&text, depth == 0 ? room : depth, steps};
}

}  // namespace thermocline
