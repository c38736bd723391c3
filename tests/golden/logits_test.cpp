// Our logits against those of other programs on the same files: double precision in numpy, and
// llama.cpp in float32 (README.md says how they were made).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/thermocline.h"
#include "tests/support/models.h"

namespace thermocline {
namespace {

using nlohmann::json;

const std::string kFolder = THERMOCLINE_SOURCE_DIR "/tests/golden/";

json read_json(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file) << path;
  return json::parse(file);
}

double root_mean_square(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += v * v;
  return std::sqrt(sum / static_cast<double>(values.size()));
}

double largest_difference(const std::vector<float>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::fabs(a[i] - b[i]));
  return largest;
}

// An engine with an exact cache, and the ways to the logits after some tokens.
class Reader {
 public:
  explicit Reader(const std::string& path, std::uint32_t positions) {
    EngineOptions options;
    options.model_path = path;
    options.threads = 2;
    auto engine = Engine::open(options);
    if (!engine) throw std::runtime_error(engine.error().message);
    engine_ = std::move(*engine);
    CacheOptions cache;
    cache.method_directory = THERMOCLINE_SOURCE_DIR "/configs/methods";
    cache.max_positions = positions;
    auto opened = engine_->open_cache(cache);
    if (!opened) throw std::runtime_error(opened.error().message);
    cache_ = std::move(*opened);
  }

  // The first `together` tokens by prefill, the others one by one.
  std::vector<float> logits(const std::vector<int>& tokens, std::size_t together) {
    auto timeline = cache_->start();
    EXPECT_TRUE(timeline) << timeline.error().message;
    std::vector<float> logits(engine_->model().vocabulary);
    if (together > 0) {
      const Status status =
          engine_->prefill(*timeline, std::span(tokens).first(together), logits, {});
      EXPECT_TRUE(status) << status.error().message;
    }
    for (std::size_t i = together; i < tokens.size(); ++i) {
      const Feed feed{&*timeline, tokens[i]};
      const Status status = engine_->step({&feed, 1}, {logits.data(), 1, logits.size()});
      EXPECT_TRUE(status) << status.error().message;
    }
    return logits;
  }

  // After each of the positions, which ascend: the text is read in pieces that end there.
  std::map<std::uint32_t, std::vector<float>> logits_at(
      const std::vector<int>& tokens, const std::vector<std::uint32_t>& positions) {
    auto timeline = cache_->start();
    EXPECT_TRUE(timeline) << timeline.error().message;
    std::map<std::uint32_t, std::vector<float>> found;
    for (const std::uint32_t at : positions) {
      std::vector<float>& logits = found[at];
      logits.resize(engine_->model().vocabulary);
      const std::uint32_t from = timeline->length();
      const Status status =
          engine_->prefill(*timeline, std::span(tokens).subspan(from, at + 1 - from), logits, {});
      EXPECT_TRUE(status) << status.error().message;
    }
    return found;
  }

 private:
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<KvCache> cache_;
};

// Keys and values are kept as f16: that alone moves the logits of these random networks, whose
// attention is sharp, by up to 0.7 % of their size (with f32 keys and values: 1e-5 for weights that
// are floats, 6e-4 with our 16-bit activations). A wrong rotation or norm moves them by 100 %.
constexpr double kTinyBound = 0.01;

TEST(Logits, TinyModelsOfEveryArchitecture) {
  const json golden = read_json(kFolder + "tiny/logits.json");
  ASSERT_GE(golden["models"].size(), 7u);
  for (const auto& [name, model] : golden["models"].items()) {
    Reader reader(kFolder + "tiny/" + name, 256);
    for (const json& sequence : model["sequences"]) {
      const auto tokens = sequence["tokens"].get<std::vector<int>>();
      const auto expected = sequence["logits_double"].get<std::vector<double>>();
      const double bound = kTinyBound * root_mean_square(expected);
      for (const std::size_t together : {tokens.size(), std::size_t{0}, tokens.size() / 2})
        EXPECT_LT(largest_difference(reader.logits(tokens, together), expected), bound)
            << name << ", " << tokens.size() << " tokens, " << together << " of them together";
    }
  }
}

// `bound`: what a logit may differ by from double precision, or from llama.cpp in float32 where a
// text was too long for that: f16 keys and values, 16-bit activations in decode.
void check_real_model(const std::string& model, const std::string& expectations, double bound) {
  const auto path = test::find_model(model);
  if (!path) GTEST_SKIP() << test::model_missing(model);
  const json golden = read_json(kFolder + expectations);
  Reader reader(*path, 8192);
  double worst = 0;
  for (const auto& [name, prompt] : golden["prompts"].items()) {
    const auto tokens = prompt["tokens"].get<std::vector<int>>();
    std::vector<std::uint32_t> positions;
    for (const json& at : prompt["positions"]) positions.push_back(at["position"]);
    const auto logits = reader.logits_at(tokens, positions);
    for (const json& at : prompt["positions"]) {
      const std::vector<float>& ours = logits.at(at["position"]);
      const auto ids = at["ids"].get<std::vector<std::size_t>>();
      // Long prompts have no pass in double precision.
      const auto expected =
          at.at(at.contains("double") ? "double" : "logits").get<std::vector<double>>();
      for (std::size_t i = 0; i < ids.size(); ++i)
        worst = std::max(worst, std::fabs(ours[ids[i]] - expected[i]));
      EXPECT_LT(worst, bound) << name << " at " << at["position"];
    }
  }
  testing::Test::RecordProperty("largest_difference", std::to_string(worst));
  std::printf("%s: largest difference %.4f\n", model.c_str(), worst);
}

// Every step of the recorded greedy texts whose margin is larger than the error of our logits must
// choose the recorded token, given the recorded tokens before it. An error of `bound` on either of
// two logits moves a margin by twice that.
void check_greedy(const std::string& model, const std::string& expectations, double bound,
                  std::size_t most_tokens) {
  const auto path = test::find_model(model);
  if (!path) GTEST_SKIP() << test::model_missing(model);
  const json golden = read_json(kFolder + expectations);
  Reader reader(*path, 8192);
  std::size_t prompts = 0, steps = 0, close = 0;
  for (const auto& [name, prompt] : golden["prompts"].items()) {
    if (!prompt.contains("tokens") || prompt["tokens"].size() > most_tokens) continue;
    auto tokens = prompt["tokens"].get<std::vector<int>>();
    const auto greedy = prompt["greedy"].get<std::vector<int>>();
    const auto margin = prompt["margin"].get<std::vector<double>>();
    std::vector<std::uint32_t> positions;
    for (std::size_t i = 0; i < greedy.size(); ++i)
      positions.push_back(static_cast<std::uint32_t>(tokens.size() - 1 + i));
    const std::size_t length = tokens.size();
    tokens.insert(tokens.end(), greedy.begin(), greedy.end() - 1);
    const auto logits = reader.logits_at(tokens, positions);
    ++prompts;
    for (std::size_t i = 0; i < greedy.size(); ++i) {
      if (margin[i] < 2 * bound) {
        ++close;
        continue;
      }
      const std::vector<float>& ours = logits.at(static_cast<std::uint32_t>(length - 1 + i));
      const auto best = std::max_element(ours.begin(), ours.end()) - ours.begin();
      EXPECT_EQ(best, greedy[i]) << name << ", step " << i << ", margin " << margin[i];
      ++steps;
    }
  }
  EXPECT_GT(steps, 10 * close);
  std::printf("%s: %zu prompts, %zu steps equal, %zu closer than %.3f left out\n", model.c_str(),
              prompts, steps, close, 2 * bound);
}

TEST(Logits, SmolLm2) {  // measured: 0.0094
  check_real_model("SmolLM2-135M-Instruct.Q4_1.gguf", "logits_smollm2.json", 0.02);
}
TEST(Greedy, SmolLm2) {
  check_greedy("SmolLM2-135M-Instruct.Q4_1.gguf", "greedy_smollm2.json", 0.02, 2500);
}
TEST(Greedy, Gemma3) { check_greedy("gemma-3-270m-q4_k_m.gguf", "greedy_gemma3.json", 0.05, 2500); }
TEST(Logits, Gemma3) { check_real_model("gemma-3-270m-q4_k_m.gguf", "logits_gemma3.json", 0.05); }

}  // namespace
}  // namespace thermocline
