// What sweep measures: prompts that are read or tokens that are decoded, from a depth on and back
// to it, in one sequence or in several that decode together.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/thermocline.h"
#include "tools/thermocline/progress.h"

namespace thermocline {

struct SpeedTest {
  std::uint32_t prompt = 0, generated = 0;  // of each sequence; one of them is 0
  std::string name() const {
    return prompt > 0 ? "pp" + std::to_string(prompt) : "tg" + std::to_string(generated);
  }
};

// What a test measured: a value a repetition, of all sequences together.
struct SpeedSamples {
  std::vector<double> rates, first_token_ms;
  CacheReport cost;                // of all repetitions
  std::uint64_t tokens = 0;        // of all repetitions
  std::uint64_t weight_reads = 0;  // how often decode read all weights
  std::optional<std::uint64_t> answer;
  bool same_answers = true;
};

// One configuration: a model, a cache and the contexts that tests start from. Engine and cache
// outlive it; the cache has room for as many timelines (CacheOptions::max_timelines).
class SpeedBench {
 public:
  // Each sequence reads `tokens`, from another place on and round to there.
  SpeedBench(Engine& engine, KvCache& cache, std::span<const int> tokens, std::uint32_t sequences,
             ProgressStyle style);

  // Forgets what there is, and reads `depth` tokens in each sequence.
  Status fill(std::uint32_t depth);
  // One repetition, from the depth and back to it. No samples: its cost is not kept.
  Status repeat(const SpeedTest& test, SpeedSamples* samples);

 private:
  struct Sequence {
    std::vector<int> tokens;
    Timeline timeline;
  };

  Status prefill(std::uint32_t count, const std::string& label);
  Status step(std::uint32_t position);
  MatView<float> logits() {
    return {logits_.data(), sequences_.size(), engine_.model().vocabulary};
  }

  Engine& engine_;
  KvCache& cache_;
  ProgressStyle style_;
  std::vector<Sequence> sequences_;
  std::vector<Feed> feeds_;
  std::vector<float> logits_;
  std::uint32_t depth_ = 0;
  double depth_ms_ = 0;
};

}  // namespace thermocline
