#include "tests/support/models.h"

#include <cstdlib>
#include <filesystem>

namespace thermocline::test {
namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The folder that `variable` names, else `leaf` in the cache of the project.
std::string folder(const char* variable, const char* leaf) {
  if (std::string named = environment(variable); !named.empty()) return named;
  std::string cache = environment("XDG_CACHE_HOME");
  if (cache.empty()) cache = environment("HOME") + "/.cache";
  return cache + "/thermocline/" + leaf;
}

}  // namespace

std::optional<std::string> find_model(std::string_view name) {
  const std::string path = folder("THERMOCLINE_MODELS", "models") + "/" + std::string(name);
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return std::nullopt;
  return path;
}

std::string model_missing(std::string_view name) {
  return "no " + folder("THERMOCLINE_MODELS", "models") + "/" + std::string(name) +
         ": run tools/fetch_models, or set THERMOCLINE_MODELS";
}

std::optional<std::string> find_vocabs() {
  const std::string path = folder("THERMOCLINE_PEER_VOCABS", "vocabs");
  std::error_code error;
  if (!std::filesystem::is_regular_file(path + "/ggml-vocab-gpt-2.gguf", error))
    return std::nullopt;
  return path;
}

std::string vocabs_missing() {
  return "no ggml-vocab-*.gguf in " + folder("THERMOCLINE_PEER_VOCABS", "vocabs") +
         ": run tools/fetch_vocabs, or set THERMOCLINE_PEER_VOCABS";
}

bool every_prompt() { return !environment(kEveryPrompt).empty(); }

}  // namespace thermocline::test
