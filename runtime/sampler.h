// From logits to the next token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline {

struct SamplingOptions {
  float temperature = 0.8f;  // 0: greedy
  int top_k = 40;            // 0: all
  float top_p = 0.95f;       // 1: all
  float min_p = 0.05f;       // 0: all
  float repeat_penalty = 1.0f;
  int repeat_last_n = 64;  // tokens that the penalty looks at; -1: all
  std::uint64_t seed = 0;
};

// The order is llama.cpp's: penalty, top-k, top-p, min-p, temperature, draw. The same options,
// logits and history give the same tokens on every machine of one instruction set: its random
// numbers are its own.
class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);
  // Reads logits [vocabulary], at least one; not-a-number counts as impossible. Of equal logits the
  // lower token is the better one. `accept` is called with every token of the text, the prompt's
  // included.
  int sample(std::span<const float> logits);
  void accept(int token);
  // Its options, but for the seed, and where it is in its random numbers, as text; and back there,
  // with its own options. corrupt: it is no such text.
  std::string state() const;
  Status restore(const std::string& state);
  static Result<SamplingOptions> options_in(const std::string& state);

 private:
  struct Candidate {
    float logit;
    int token;
  };
  static bool better(const Candidate& a, const Candidate& b);
  float penalized(float logit, std::size_t token) const;
  int best(std::span<const float> logits) const;
  void collect(std::span<const float> logits);
  void keep_top_p();
  void keep_min_p();
  int draw();

  SamplingOptions options_;
  std::mt19937_64 random_;
  std::vector<int> history_;            // the last repeat_last_n tokens, a ring
  std::size_t next_ = 0;                // of the ring
  std::vector<std::uint32_t> repeats_;  // of each token within the history
  std::vector<Candidate> candidates_;   // best first
  std::vector<double> weights_;
};

}  // namespace thermocline
