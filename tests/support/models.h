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

}  // namespace thermocline::test
