// Tiny models with their cache on a device: after the tokens that they generate with it in host
// memory, logits as near to those as rounding is.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/thermocline.h"
#include "tests/support/float_table.h"
#include "tests/unit/device/each_device.h"

namespace thermocline {
namespace {

struct Answer {
  std::vector<int> tokens;
  std::vector<std::vector<float>> logits;
  CacheReport decoded;
};

// `given`: tokens that follow the prompt in place of the likeliest.
Answer generate(const std::string& model, const std::string& method, const std::string& device,
                const std::vector<std::string>& overrides = {},
                const std::vector<int>& given = {}) {
  EngineOptions engine_options;
  engine_options.model_path = "tests/golden/tiny/" + model + ".gguf";
  engine_options.threads = 2;
  engine_options.isa = test::float_isa();  // others round a prefill's operands to bf16
  const auto engine = Engine::open(engine_options);
  if (!engine) throw std::runtime_error(engine.error().message);
  const std::size_t vocabulary = (*engine)->model().vocabulary;
  std::mt19937 random(11);
  std::vector<int> prompt(500);
  for (int& token : prompt) token = static_cast<int>(random() % vocabulary);

  CacheOptions options;
  options.method = method;
  options.method_directory = "configs/methods";
  options.method_overrides = {"steady.recent=64", "steady.seal=64"};
  options.method_overrides.insert(options.method_overrides.end(), overrides.begin(),
                                  overrides.end());
  options.max_positions = 600;
  options.tiers.device = device;
  options.tiers.device_bytes = device == "none" ? 0 : std::uint64_t{64} << 20;
  if (std::ranges::count(overrides, "place.rows=lowest") > 0) {
    options.tiers.directory = ::testing::TempDir();
    options.tiers.disk_bytes = std::uint64_t{64} << 20;
  }
  const auto cache = (*engine)->open_cache(options);
  if (!cache) throw std::runtime_error(cache.error().message);
  auto timeline = (*cache)->start();
  std::vector<float> logits(vocabulary);
  EXPECT_TRUE((*engine)->prefill(*timeline, prompt, logits, {}));
  const CacheReport before = (*cache)->report();
  Answer answer;
  for (std::size_t i = 0; i < 20; ++i) {
    answer.logits.push_back(logits);
    answer.tokens.push_back(
        static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    const Feed feed{&*timeline, given.empty() ? answer.tokens.back() : given[i]};
    EXPECT_TRUE((*engine)->step({&feed, 1}, {logits.data(), 1, vocabulary}));
  }
  answer.decoded = difference((*cache)->report(), before);
  return answer;
}

// The largest difference of two logits, of their size.
double apart(const std::vector<float>& one, const std::vector<float>& other) {
  double most = 0, squares = 0;
  for (std::size_t i = 0; i < one.size(); ++i) {
    most = std::max(most, std::abs(double{one[i]} - double{other[i]}));
    squares += double{one[i]} * double{one[i]};
  }
  return most / std::sqrt(squares / static_cast<double>(one.size()));
}

class DeviceModel : public EachDevice {};

TEST_P(DeviceModel, GeneratesWithinRounding) {
  for (const char* model : {"llama_f32", "gemma3_f16"})
    for (const char* method : {"exact", "sketch", "ladder2"}) {
      SCOPED_TRACE(std::string(model) + ", " + method);
      const Answer here = generate(model, method, "none");
      const Answer there = generate(model, method, GetParam(), {}, here.tokens);
      EXPECT_EQ(there.logits == here.logits, !is_gpu());
      // A prefill there has operands rounded to f16, as keys and values are, which moves the logits
      // of these random networks by up to 0.7 % (logits_test.cpp): that much once more. Where rows
      // are chosen afterwards, by keys that are off by it, they may be others.
      const std::size_t compared = std::string(method) == "exact" ? here.logits.size() : 1;
      for (std::size_t i = 0; i < compared; ++i)
        EXPECT_LE(apart(here.logits[i], there.logits[i]), 0.02) << "token " << i;
      EXPECT_GT(there.decoded.device_bytes_read, 0u);
      EXPECT_EQ(there.decoded.device_bytes_copied, 0u);
      EXPECT_EQ(there.decoded.rows_read, here.decoded.rows_read);
      EXPECT_LT(there.decoded.host_bytes_read, here.decoded.host_bytes_read);
      if (!is_gpu()) continue;  // which fetches what is at home elsewhere
      // The host lists what `exact` fetches, and merges it, wherever that is at home.
      const Answer fetches = generate(model, method, GetParam(), {"place.run=fetch"}, here.tokens);
      EXPECT_EQ(fetches.logits == there.logits, std::string(method) != "exact");
      for (const char* home : {"place.rows=host", "place.rows=lowest"}) {
        SCOPED_TRACE(home);
        const Answer fetched =
            generate(model, method, GetParam(), {"place.run=fetch", home}, here.tokens);
        EXPECT_TRUE(fetched.logits == fetches.logits);
        EXPECT_GT(fetched.decoded.device_bytes_fetched, 0u);
        EXPECT_EQ(fetched.decoded.device_bytes_read > 0, std::string(method) != "exact");
      }
    }
}
THERMOCLINE_EACH_DEVICE(DeviceModel);

}  // namespace
}  // namespace thermocline
