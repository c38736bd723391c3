// Where tests find real models and vocabularies: they are fetched, never part of the source.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace thermocline::test {

// `$THERMOCLINE_MODELS/name`, else `${XDG_CACHE_HOME:-~/.cache}/thermocline/models/name`; nothing
// if there is no such file: skip with model_missing(name).
std::optional<std::string> find_model(std::string_view name);
std::string model_missing(std::string_view name);

// The folder with ggml-vocab-*.gguf: `$THERMOCLINE_PEER_VOCABS`, else
// `${XDG_CACHE_HOME:-~/.cache}/thermocline/vocabs`.
std::optional<std::string> find_vocabs();
std::string vocabs_missing();

// What takes longest with real models is done with a few of the recorded texts, those that go wrong
// first, and with all of them where kEveryPrompt is in the environment.
inline constexpr const char* kEveryPrompt = "THERMOCLINE_EVERY_PROMPT";
bool every_prompt();

}  // namespace thermocline::test
