// Reads token sequences with a model file and hands out logits, for tests against other programs.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/thermocline.h"

namespace thermocline::test {

// tests/golden/NAME and tests/golden/prompts/[long/]NAME.txt. A missing file throws.
nlohmann::json read_expectations(const std::string& name);
std::string read_prompt(const std::string& name);

// The ids in decimal, joined by commas, under XXH3 with 128 bits, in hexadecimal.
std::string hash_of(std::span<const int> tokens);

std::size_t best_of(std::span<const float> logits);
// -log p(token) in nats.
double surprise_of(std::span<const float> logits, int token);

// One engine, one text at a time. What goes wrong throws: GoogleTest fails the test with it.
class Reader {
 public:
  // Called with a position and the logits after it.
  using OnLogits = std::function<void(std::size_t position, std::span<const float> logits)>;

  // Caches hold `positions` and follow `method`, with "key=value" over its file. isa: as
  // EngineOptions has it.
  Reader(const std::string& path, std::uint32_t positions, const std::string& method = "exact",
         const std::vector<std::string>& overrides = {}, const std::string& isa = "auto");

  const ModelInfo& model() const { return engine_->model(); }
  // As the reference was given them: special tokens are recognised, a leading one is added where
  // the model asks for it.
  std::vector<int> tokens(std::string_view text) const;

  void start();  // forgets what was read
  void mark();   // where rewind() goes back to, once
  void rewind();
  CacheReport report() const { return cache_->report(); }
  // On from the last position. By prefill, with the logits of every position where they are wanted,
  // returning the last's; or by decoding one token after the other.
  std::span<const float> prefill(std::span<const int> tokens, const OnLogits& on_logits = {});
  void decode(std::span<const int> tokens, const OnLogits& on_logits);

 private:
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<KvCache> cache_;
  Timeline timeline_, marked_;
  std::vector<float> logits_;
};

}  // namespace thermocline::test
