// From logits to the next token.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace thermocline {

struct SamplingOptions {
  float temperature = 0.8f;  // 0: greedy
  int top_k = 40;            // 0: all
  float top_p = 0.95f;       // 1: all
  float min_p = 0.05f;       // 0: all
  float repeat_penalty = 1.0f;
  int repeat_last_n = 64;    // tokens that the penalty looks at; -1: all
  std::uint64_t seed = 0;
};

// The same options, logits and history give the same tokens on every machine of one instruction
// set: its random numbers are its own.
class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);
  // Reads logits [vocabulary]; `accept` is called with every token of the text (prompt included).
  int sample(std::span<const float> logits);
  void accept(int token);

 private:
  SamplingOptions options_;
  std::mt19937_64 random_;
  std::vector<int> history_;
  std::vector<std::pair<float, int>> candidates_;
};

}  // namespace thermocline
