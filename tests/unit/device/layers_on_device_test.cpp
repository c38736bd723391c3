// Tiny models some or all of whose layers a device computes: their logits, what is planned and
// taken for them, what no place of rows may change, and what is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/device.h"
#include "kernels/matvec.h"
#include "runtime/prefill.h"
#include "runtime/thermocline.h"
#include "tests/support/float_table.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/device/each_device.h"

namespace thermocline {
namespace {

const std::string kFolder = "tests/golden/tiny/";
constexpr std::uint32_t kAll = 1000;  // more layers than any has
constexpr std::uint32_t kPositions = 600;

std::unique_ptr<Engine> open(const std::string& model, std::uint32_t device_layers) {
  EngineOptions options;
  options.model_path = kFolder + model;
  options.threads = 2;
  options.isa = test::float_isa();  // the host's part in floats, wherever this runs
  options.device_layers = device_layers;
  auto engine = Engine::open(options);
  if (!engine) throw std::runtime_error(engine.error().message);
  return std::move(*engine);
}

CacheOptions cache_options(const std::string& method = "exact") {
  CacheOptions options;
  options.method = method;
  options.method_directory = "configs/methods";
  options.method_overrides = {"steady.recent=64", "steady.seal=64"};
  options.max_positions = kPositions;
  options.max_timelines = 4;
  return options;
}

std::unique_ptr<KvCache> open_cache(const Engine& engine, const CacheOptions& options) {
  auto cache = engine.open_cache(options);
  if (!cache) throw std::runtime_error(cache.error().message);
  return std::move(*cache);
}

Timeline start(KvCache& cache) {
  auto timeline = cache.start();
  if (!timeline) throw std::runtime_error(timeline.error().message);
  return std::move(*timeline);
}

std::vector<int> random_tokens(const Engine& engine, std::size_t count) {
  std::mt19937 random(11);
  std::vector<int> tokens(count);
  for (int& token : tokens) token = static_cast<int>(random() % engine.model().vocabulary);
  return tokens;
}

// The logits after the last of the tokens, of which the first `together` are read by prefill, the
// others one by one.
std::vector<float> logits_after(Engine& engine, Timeline& timeline, std::span<const int> tokens,
                                std::size_t together) {
  std::vector<float> logits(engine.model().vocabulary);
  if (together > 0) {
    EXPECT_TRUE(engine.prefill(timeline, tokens.first(together), logits, {}));
  }
  for (const int token : tokens.subspan(together)) {
    const Feed feed{&timeline, token};
    EXPECT_TRUE(engine.step({&feed, 1}, {logits.data(), 1, logits.size()}));
  }
  return logits;
}

double root_mean_square(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += v * v;
  return std::sqrt(sum / static_cast<double>(values.size()));
}

class LayersOnDeviceTest : public OnAGpu {};

// Against double precision. f16 keys and values move the logits of these random networks, whose
// attention is sharp, by up to 0.7 % of their size (logits_test.cpp); of more than 16 tokens that
// are read together, operands are rounded to bf16 on a device.
constexpr double kBound = 0.01, kRoundedBound = 0.12;
// And in a prefill's attention to f16, as keys and values are: that much once more.
constexpr double kPrefillBound = 2 * kBound;

TEST_F(LayersOnDeviceTest, GivesTheLogitsOfEveryArchitecture) {
  std::ifstream file(kFolder + "logits.json");
  const auto golden = nlohmann::json::parse(file);
  ASSERT_GE(golden["models"].size(), 7u);
  double worst = 0, worst_rounded = 0;
  for (const auto& [name, model] : golden["models"].items())
    for (const std::uint32_t there : {1u, kAll}) {
      const auto engine = open(name, there);
      const auto cache = open_cache(*engine, cache_options());
      for (const auto& sequence : model["sequences"]) {
        const auto tokens = sequence["tokens"].get<std::vector<int>>();
        const auto expected = sequence["logits_double"].get<std::vector<double>>();
        const std::size_t size = tokens.size();
        SCOPED_TRACE(name + ", " + std::to_string(there) + " layers, " + std::to_string(size) +
                     " tokens");
        const auto check = [&](const std::vector<float>& logits, std::size_t together) {
          double difference = 0;
          for (std::size_t i = 0; i < logits.size(); ++i)
            difference = std::max(difference, std::abs(double{logits[i]} - expected[i]));
          difference /= root_mean_square(expected);
          const bool rounded = together > kFewRows;
          EXPECT_LT(difference, rounded ? kRoundedBound : kBound) << together << " together";
          double& most = rounded ? worst_rounded : worst;
          most = std::max(most, difference);
        };
        for (const std::size_t together : {size, size - 6}) {
          Timeline timeline = start(*cache);
          check(logits_after(*engine, timeline, tokens, together), together);
        }
        Timeline timeline = start(*cache);
        std::vector<float> logits;
        for (std::size_t first = 0; first < size; first += kFewRows) {
          const auto some = std::span(tokens).subspan(first, std::min(kFewRows, size - first));
          logits = logits_after(*engine, timeline, some, some.size());
        }
        check(logits, kFewRows);
      }
    }
  std::printf("largest difference, of the logits' size: %.4f, rounded %.4f\n", worst,
              worst_rounded);
}

// A prompt of two chunks, so that rows of one are on the device while the other's are wanted.
struct Answer {
  std::vector<std::vector<float>> logits;
  CacheReport report;
};
Answer generate(Engine& engine, const CacheOptions& options) {
  const auto cache = open_cache(engine, options);
  Timeline timeline = start(*cache);
  Answer answer;
  answer.logits.push_back(logits_after(engine, timeline, random_tokens(engine, 560), 560));
  for (int i = 0; i < 12; ++i) {
    const std::vector<float>& last = answer.logits.back();
    const int token = static_cast<int>(std::max_element(last.begin(), last.end()) - last.begin());
    answer.logits.push_back(logits_after(engine, timeline, {&token, 1}, 0));
  }
  answer.report = cache->report();
  return answer;
}
static_assert(560 > kChunkPositions && 560 + 12 <= kPositions);

TEST_F(LayersOnDeviceTest, NoPlaceOfRowsChangesABit) {
  test::TemporaryFolder folder("layers-on-device");
  for (const auto& [model, there, method] :
       {std::tuple("llama_mixed.gguf", kAll, "exact"), std::tuple("llama_mixed.gguf", 1u, "sketch"),
        std::tuple("gemma3_f16.gguf", 2u, "exact")}) {
    const auto engine = open(model, there);
    EXPECT_EQ(engine->model().device_head, there == kAll);
    SCOPED_TRACE(std::string(model) + ", " + method);
    const Answer in_memory = generate(*engine, cache_options(method));
    CacheOptions options = cache_options(method);
    options.method_overrides.push_back("place.rows=lowest");
    options.tiers.disk_bytes = std::uint64_t{64} << 20;
    options.tiers.directory = folder.path();
    const Answer on_disk = generate(*engine, options);
    EXPECT_GT(on_disk.report.disk_bytes_written, 0u);
    EXPECT_EQ(on_disk.logits, in_memory.logits);
    options = cache_options(method);
    options.tiers.device = "host";
    options.tiers.device_bytes = std::uint64_t{64} << 20;
    const Answer stand_in = generate(*engine, options);
    EXPECT_GT(stand_in.report.device_bytes_read, 0u);
    EXPECT_EQ(stand_in.logits, in_memory.logits);
    // Rows and layers on a device together, which rounds otherwise.
    options.tiers.device = "cuda";
    const Answer all_there = generate(*engine, options);
    EXPECT_GT(all_there.report.device_bytes_read, 0u);
    const std::vector<float>&got = all_there.logits.front(), &want = in_memory.logits.front();
    const double bound = kPrefillBound * root_mean_square({want.begin(), want.end()});
    for (std::size_t v = 0; v < want.size(); ++v) ASSERT_NEAR(got[v], want[v], bound);
    // The same bits wherever those rows are that a device has to fetch. (What `exact` reads of rows
    // at home there it lists itself, and merges otherwise.)
    CacheOptions at_home = options;
    at_home.method_overrides.push_back("place.run=fetch");
    const Answer fetches = generate(*engine, at_home);
    EXPECT_EQ(fetches.logits == all_there.logits, std::string(method) != "exact");
    for (const char* home : {"place.rows=host", "place.rows=lowest"}) {
      CacheOptions fetched = options;
      fetched.tiers.disk_bytes = std::uint64_t{64} << 20;
      fetched.tiers.directory = folder.path();
      fetched.method_overrides.insert(fetched.method_overrides.end(), {"place.run=fetch", home});
      EXPECT_EQ(generate(*engine, fetched).logits, fetches.logits) << home;
    }
  }
}

// Other layers there are other bits, since a device rounds otherwise, and near the host's; none
// there are the host's.
TEST_F(LayersOnDeviceTest, LogitsDependOnWhichLayersAreThereByRoundingAlone) {
  std::vector<std::vector<std::vector<float>>> seen;
  for (const std::uint32_t there : {0u, 1u, kAll}) {
    const auto engine = open("qwen2_bf16.gguf", there);
    seen.push_back(generate(*engine, cache_options()).logits);
    EXPECT_EQ(generate(*engine, cache_options()).logits, seen.back());
  }
  EXPECT_NE(seen[0].back(), seen[1].back());
  EXPECT_NE(seen[1].back(), seen[2].back());
  const std::vector<float>& host = seen[0].front();
  const double bound = kRoundedBound * root_mean_square({host.begin(), host.end()});
  for (const auto& logits : {seen[1].front(), seen[2].front()})
    for (std::size_t i = 0; i < host.size(); ++i) EXPECT_NEAR(logits[i], host[i], bound) << i;
}

TEST_F(LayersOnDeviceTest, ARowOfAStepHasTheBitsThatItHasAlone) {
  const auto engine = open("qwen3_q8_0.gguf", kAll);
  const auto cache = open_cache(*engine, cache_options());
  const std::vector<int> tokens = random_tokens(*engine, 30);
  const std::size_t vocabulary = engine->model().vocabulary;
  Timeline alone = start(*cache), one = start(*cache), two = start(*cache);
  const std::vector<float> want = logits_after(*engine, alone, tokens, 20);
  for (Timeline* timeline : {&one, &two})
    logits_after(*engine, *timeline, std::span(tokens).first(20), 20);
  std::vector<Feed> feeds;  // ten rows of each, side by side and one after the other
  std::vector<float> logits(2 * vocabulary);
  for (std::size_t i = 20; i < 30; ++i) {
    feeds = {{&one, tokens[i]}, {&two, tokens[i]}};
    ASSERT_TRUE(engine->step(feeds, {logits.data(), 2, vocabulary}));
  }
  EXPECT_TRUE(std::equal(want.begin(), want.end(), logits.begin()));
  EXPECT_TRUE(std::equal(want.begin(), want.end(), logits.begin() + static_cast<long>(vocabulary)));
}

TEST_F(LayersOnDeviceTest, AStoppedPrefillLeavesNothing) {
  const auto engine = open("llama_f32.gguf", 1);
  const auto cache = open_cache(*engine, cache_options());
  const std::vector<int> tokens = random_tokens(*engine, 560);
  Timeline timeline = start(*cache);
  for (int calls : {1, 2, 3, 5, 8}) {
    PrefillOptions options;
    options.stop = [&] { return --calls < 0; };
    std::vector<float> logits(engine->model().vocabulary);
    const Status stopped = engine->prefill(timeline, tokens, logits, options);
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().code, ErrorCode::cancelled);
    EXPECT_EQ(timeline.length(), 0u);
  }
  Timeline fresh = start(*cache);
  EXPECT_EQ(logits_after(*engine, timeline, tokens, 560),
            logits_after(*engine, fresh, tokens, 560));
}

std::uint64_t bytes_of(const MemoryPlan& plan, const std::string& tier,
                       const std::string& purpose) {
  std::uint64_t bytes = 0;
  for (const MemoryLine& line : plan.lines)
    if (line.tier == tier && line.purpose == purpose) bytes += line.bytes;
  return bytes;
}

TEST_F(LayersOnDeviceTest, SaysWhereLayersAreAndWhatTheyTake) {
  const auto none = open("llama_mixed.gguf", 0), one = open("llama_mixed.gguf", 1),
             all = open("llama_mixed.gguf", kAll);
  EXPECT_EQ(none->model().device_layers, 0u);
  EXPECT_EQ(none->model().device, "");
  EXPECT_EQ(one->model().device_layers, 1u);
  EXPECT_EQ(all->model().device_layers, all->model().layers);
  EXPECT_TRUE(all->model().device.starts_with("cuda:0 (")) << all->model().device;

  std::map<const Engine*, MemoryPlan> plans;
  for (const Engine* engine : {none.get(), one.get(), all.get()}) {
    const auto plan = engine->plan(cache_options());
    ASSERT_TRUE(plan) << plan.error().message;
    plans[engine] = *plan;
    const auto cache = open_cache(*engine, cache_options());
    for (const char* purpose : {"weights", "activations"}) {
      const std::uint64_t planned = bytes_of(*plan, "device", purpose);
      EXPECT_EQ(bytes_of(engine->usage(*cache), "device", purpose), planned);
      EXPECT_EQ(bytes_of(engine->usage(), "device", purpose), planned);
    }
    EXPECT_EQ(plan->peak_bytes.contains("device") ? plan->peak_bytes.at("device") : 0,
              bytes_of(*plan, "device", "weights") + bytes_of(*plan, "device", "activations"));
  }
  const auto weights = [&](const auto& engine, const char* tier) {
    return bytes_of(plans[engine.get()], tier, "weights");
  };
  EXPECT_EQ(weights(none, "device"), 0u);
  EXPECT_EQ(weights(none, "mapped"), none->model().weight_bytes);
  EXPECT_GT(weights(one, "device"), 0u);
  EXPECT_GT(weights(all, "device"), weights(one, "device"));
  EXPECT_GT(weights(all, "mapped"), 0u);  // the vocabulary's
  EXPECT_LT(weights(all, "mapped"), weights(one, "mapped"));
  EXPECT_GE(weights(all, "device") + weights(all, "mapped"), none->model().weight_bytes);
}

TEST_F(LayersOnDeviceTest, GivesBackWhatTheyTook) {
  const auto device = open_device(0);
  const std::uint64_t before = *(*device)->free_bytes();
  {
    const auto engine = open("llama_f32.gguf", kAll);
    const auto plan = engine->plan(cache_options());
    EXPECT_LE(*(*device)->free_bytes() + plan->peak_bytes.at("device"), before);
  }
  EXPECT_EQ(*(*device)->free_bytes(), before);
}

TEST_F(LayersOnDeviceTest, TooLittleMemoryIsSaid) {
  EngineOptions options;
  options.model_path = kFolder + "llama_f32.gguf";
  options.device_layers = kAll;
  options.limits.device_bytes = 4096;
  const auto limited = Engine::open(options);
  ASSERT_FALSE(limited);
  EXPECT_EQ(limited.error().code, ErrorCode::exhausted);
  for (const char* said :
       {"limits.device_bytes leaves 4 KiB", "lower --gpu-layers", "layers and the head need"})
    EXPECT_NE(limited.error().message.find(said), std::string::npos) << limited.error().message;

  options.limits = {};
  const auto device = open_device(0);
  const auto taken = (*device)->take(*(*device)->free_bytes() - 4096);
  ASSERT_TRUE(taken);
  const auto full = Engine::open(options);
  (*device)->give(*taken);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, ErrorCode::exhausted);
  EXPECT_NE(full.error().message.find("free: lower --gpu-layers"), std::string::npos)
      << full.error().message;
}

// As much as is counted, and less than its pieces take.
TEST_F(LayersOnDeviceTest, MemoryThatIsShortByAPieceIsSaid) {
  const std::uint64_t needed =
      open("llama_f32.gguf", kAll)->plan(cache_options())->peak_bytes.at("device");
  const auto device = open_device(0);
  const std::uint64_t before = *(*device)->free_bytes();
  const auto taken = (*device)->take(before - needed - 512);
  ASSERT_TRUE(taken);
  EngineOptions options;
  options.model_path = kFolder + "llama_f32.gguf";
  options.device_layers = kAll;
  const auto short_of = Engine::open(options);
  (*device)->give(*taken);
  ASSERT_FALSE(short_of);
  EXPECT_EQ(short_of.error().code, ErrorCode::exhausted);
  EXPECT_NE(short_of.error().message.find("lower --gpu-layers"), std::string::npos)
      << short_of.error().message;
  EXPECT_EQ(*(*device)->free_bytes(), before);
}

// What is wrong with the device is said before the model's file is looked for.
TEST(LayersOnDevice, ADeviceThatIsNotThereIsAnError) {
  EngineOptions options;
  options.model_path = "no such file";
  options.device_layers = 1;
  for (const char* name : {"host", "none", "cuda:x"}) {
    options.device = name;
    const auto engine = Engine::open(options);
    ASSERT_FALSE(engine);
    EXPECT_EQ(engine.error().code, ErrorCode::invalid_argument);
    EXPECT_NE(engine.error().message.find("known: cuda, cuda:N"), std::string::npos);
  }
  options.device = "cuda:999";
  const auto engine = Engine::open(options);
  ASSERT_FALSE(engine);
  EXPECT_NE(engine.error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(engine.error().message.find("no device for --gpu-layers: "), 0u)
      << engine.error().message;
  options.device_layers = 0;  // nobody asks which
  EXPECT_NE(Engine::open(options).error().message.find("no such file"), std::string::npos);
}

}  // namespace
}  // namespace thermocline
