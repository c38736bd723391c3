#include "runtime/kv_cache.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <tuple>

#include "kernels/attend.h"
#include "kernels/base/workers.h"
#include "runtime/cache_plan.h"
#include "tests/support/dense_oracle.h"
#include "tests/support/float_table.h"
#include "tests/support/written_rows.h"

namespace thermocline {
namespace {

LayerSpec layer(std::uint32_t q_heads, std::uint32_t kv_heads, std::uint32_t dim,
                std::uint32_t window = 0) {
  return plain_layer(kv_heads, q_heads / kv_heads, dim, dim, window);
}

// A cache and, beside it, the oracles of one or more timelines, fed the same random rows.
class Driver {
 public:
  Driver(CacheOptions options, int threads, unsigned seed = 1) : random_(seed) {
    options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
    auto made = KvCache::create(options, threads, test::float_isa());
    if (!made) {
      ADD_FAILURE() << made.error().message;
      return;
    }
    cache = std::move(*made);
  }

  struct Text {
    Timeline timeline;
    std::vector<DenseOracle> layers;
  };
  Text start() {
    Text text;
    text.timeline = std::move(*cache->start());
    for (const LayerSpec& spec : cache->layers()) text.layers.emplace_back(spec);
    return text;
  }

  // Appends rows to texts (one row a text, or many to one) and gives every layer's output. Compares
  // it with the oracle when `bound` > 0.
  std::vector<float> advance(std::vector<Text*> texts, std::uint32_t rows_each, double bound) {
    return advance(texts, rows_each, bound,
                   texts.size() * rows_each > kMaxStepRows ? Pass::prefill : Pass::decode);
  }
  std::vector<float> advance(const std::vector<Text*>& texts, std::uint32_t rows_each, double bound,
                             Pass pass) {
    std::vector<Token> at;
    for (Text* text : texts)
      for (std::uint32_t r = 0; r < rows_each; ++r)
        at.push_back({text->timeline.id(), text->timeline.length() + r});
    std::vector<float> all;
    EXPECT_TRUE(cache->begin(at, pass)) << "begin";
    for (std::uint32_t l = 0; l < cache->layers().size(); ++l) {
      const LayerSpec& spec = cache->layers()[l];
      const std::size_t n = at.size();
      auto k = random_rows(random_, n * spec.kv_heads * spec.key_dim);
      auto v = random_rows(random_, n * spec.kv_heads * spec.value_dim);
      if (rows_of_bytes) {
        make_bytes(spec.key_dim, &k);
        make_bytes(spec.value_dim, &v);
      }
      const auto q = random_rows(random_, n * spec.q_heads * spec.key_dim, 2.0f);
      std::vector<float> out(n * spec.q_heads * spec.value_dim);
      const std::size_t out_cols = out.size() / n;
      const Status appended =
          cache->append(LayerId{l}, {k.data(), n, k.size() / n}, {v.data(), n, v.size() / n});
      EXPECT_TRUE(appended) << (appended ? "" : appended.error().message);
      const Status attended =
          cache->attend(LayerId{l}, {q.data(), n, q.size() / n}, {out.data(), n, out_cols});
      EXPECT_TRUE(attended) << (attended ? "" : attended.error().message);
      for (std::size_t r = 0; r < n; ++r) {
        DenseOracle& oracle = texts[r / rows_each]->layers[l];
        oracle.append(k.data() + r * k.size() / n, v.data() + r * v.size() / n);
        const bool sampled = n <= 16 || r % 37 == 0 || r + 1 == n;
        if (bound > 0 && sampled) {
          const auto expected = oracle.attend(q.data() + r * q.size() / n, at[r].position);
          for (std::size_t i = 0; i < out_cols; ++i)
            worst = std::max(worst, std::abs(out[r * out_cols + i] - expected[i]));
        }
      }
      all.insert(all.end(), out.begin(), out.end());
    }
    if (bound > 0) {
      EXPECT_LT(worst, bound);
    }
    const Status committed = cache->commit();
    EXPECT_TRUE(committed) << (committed ? "" : committed.error().message);
    return all;
  }

  std::unique_ptr<KvCache> cache;
  double worst = 0;
  bool rows_of_bytes = false;  // rows are what int8 holds exactly

 private:
  // Multiples of 1/32, the largest 127 of them.
  static void make_bytes(std::uint32_t dim, std::vector<float>* rows) {
    for (std::size_t i = 0; i < rows->size(); ++i)
      (*rows)[i] = i % dim == 0 ? 127.0f / 32
                                : std::clamp(std::round((*rows)[i] * 32), -127.0f, 127.0f) / 32;
  }

  std::mt19937 random_;
};

// f16 rows are rounded alike on both sides (a rotated key may fall to the other neighbour when the
// float and the double product straddle a midpoint: 2^-11 of a key's value, a few 1e-4 of a
// weight).
constexpr double kBound = 4e-3;

CacheOptions options_for(std::vector<LayerSpec> layers, std::uint32_t positions) {
  CacheOptions options;
  options.layers = std::move(layers);
  options.max_positions = positions;
  options.max_timelines = 4;
  options.tiers.directory =
      (std::filesystem::temp_directory_path() / "thermocline-test-kv").string();
  return options;
}

TEST(KvCache, EqualsDenseAttentionThroughPrefillDecodeAndSealing) {
  Driver driver(options_for({layer(6, 2, 32), layer(4, 1, 64), layer(4, 2, 48, 40)}, 4000), 2);
  auto text = driver.start();
  driver.advance({&text}, 3, kBound);
  driver.advance({&text}, 900, kBound);
  for (int i = 0; i < 700; ++i) driver.advance({&text}, 1, i % 50 == 0 ? kBound : 0);
  driver.advance({&text}, 700, kBound);
  driver.advance({&text}, 2, kBound);
  EXPECT_EQ(text.timeline.length(), 3u + 900 + 700 + 700 + 2);
  EXPECT_GT(driver.cache->report().rows_sealed, 1500u);
}

TEST(KvCache, SinksMayBeMoreThanAFold) {
  auto options = options_for({layer(4, 2, 32)}, 3000);
  options.method_overrides = {"steady.sink=1024"};
  Driver driver(options, 2);
  auto text = driver.start();
  driver.advance({&text}, 700, kBound);
  driver.advance({&text}, 3, kBound);
  driver.advance({&text}, 1200, kBound);
  driver.advance({&text}, 3, kBound);
}

TEST(KvCache, KeepsTimelinesApartAndForksShareThePast) {
  Driver driver(options_for({layer(4, 2, 32)}, 3000), 2);
  auto a = driver.start();
  auto b = driver.start();
  driver.advance({&a}, 1200, kBound);
  driver.advance({&b}, 30, kBound);
  for (int i = 0; i < 5; ++i) driver.advance({&a, &b}, 1, kBound);
  Driver::Text fork;
  fork.timeline = std::move(*a.timeline.fork());
  fork.layers = a.layers;
  for (int i = 0; i < 5; ++i) driver.advance({&a, &fork, &b}, 2, kBound);
  EXPECT_EQ(fork.timeline.length(), a.timeline.length());
}

TEST(KvCache, TruncatesInTheTailAndInsideSegments) {
  for (const std::uint64_t disk : {std::uint64_t{0}, std::uint64_t{64} << 20}) {
    auto options = options_for({layer(4, 2, 32), layer(2, 1, 16)}, 6000);
    options.tiers.disk_bytes = disk;
    Driver driver(options, 2);
    auto text = driver.start();
    driver.advance({&text}, 2500, 0);
    for (const std::uint32_t length : {2490u, 2400u, 1111u, 700u, 40u, 2u, 0u}) {
      const Status cut = text.timeline.truncate(length);
      ASSERT_TRUE(cut) << cut.error().message;
      for (auto& oracle : text.layers) oracle.truncate(length);
      driver.advance({&text}, 5, kBound);
      driver.advance({&text}, 20, kBound);
    }
  }
}

// The codec's way through sealing, every tier, attention in both passes and a cut, without its
// loss.
TEST(KvCache, Int8RowsThatBytesHoldAreFullAttention) {
  const std::string keys = "keys.compress=int8", values = "values.compress=int8";
  const std::vector<std::vector<std::string>> choices = {{keys, values}, {keys}, {values}};
  for (const auto& overrides : choices)
    for (const std::uint64_t disk : {std::uint64_t{0}, std::uint64_t{64} << 20}) {
      auto options = options_for({layer(6, 2, 32), layer(2, 1, 48)}, 4000);
      for (LayerSpec& spec : options.layers) spec.rope = {};
      options.method_overrides = overrides;
      options.tiers.disk_bytes = disk;
      Driver driver(options, 2);
      ASSERT_TRUE(driver.cache);
      driver.rows_of_bytes = true;
      auto text = driver.start();
      driver.advance({&text}, 1500, kBound);
      for (int i = 0; i < 600; ++i) driver.advance({&text}, 1, i % 60 == 0 ? kBound : 0);
      driver.advance({&text}, 300, kBound);
      ASSERT_TRUE(text.timeline.truncate(1111));
      for (auto& oracle : text.layers) oracle.truncate(1111);
      driver.advance({&text}, 5, kBound);
      driver.advance({&text}, 900, kBound);
    }
}

TEST(KvCache, Int8RowsTakeTheirBytesAndLoseSomething) {
  std::uint64_t bytes[2];
  std::vector<float> out[2];
  for (const bool coded : {false, true}) {
    auto options = options_for({layer(4, 2, 64)}, 3000);
    if (coded) options.method_overrides = {"keys.compress=int8", "values.compress=int8"};
    Driver driver(options, 1);
    auto text = driver.start();
    driver.advance({&text}, 2000, 0);
    out[coded] = driver.advance({&text}, 1, 0);
    bytes[coded] = 0;
    for (const MemoryLine& line : driver.cache->usage().lines)
      if (line.purpose == "rows") bytes[coded] += line.bytes;
  }
  EXPECT_EQ(bytes[1] * 256, bytes[0] * 136);
  double worst = 0;
  for (std::size_t i = 0; i < out[0].size(); ++i)
    worst = std::max(worst, std::abs(double{out[0][i]} - out[1][i]));
  EXPECT_GT(worst, 1e-4);
  EXPECT_LT(worst, 0.1);
}

TEST(KvCache, SlidingWindowsRefuseToRewindBeyondWhatTheyKept) {
  Driver driver(options_for({layer(2, 1, 32, 64)}, 4000), 1);
  auto text = driver.start();
  driver.advance({&text}, 3000, kBound);
  const Status cut = text.timeline.truncate(100);
  ASSERT_FALSE(cut);
  EXPECT_EQ(cut.error().code, ErrorCode::unsupported);
  EXPECT_EQ(text.timeline.length(), 3000u);
  ASSERT_TRUE(text.timeline.truncate(2900));
  for (auto& oracle : text.layers) oracle.truncate(2900);
  driver.advance({&text}, 4, kBound);
}

// A layer that could be cut has not been, when another one refuses.
TEST(KvCache, ARefusedCutLeavesNoTraceInAnyLayer) {
  Driver driver(options_for({layer(4, 2, 32), layer(2, 1, 32, 64)}, 4000), 1);
  auto text = driver.start();
  driver.advance({&text}, 2000, kBound);
  const Status cut = text.timeline.truncate(300);
  ASSERT_FALSE(cut);
  EXPECT_EQ(cut.error().code, ErrorCode::unsupported);
  driver.advance({&text}, 3, kBound);
  EXPECT_TRUE(text.timeline.truncate(2000));
  for (auto& oracle : text.layers) oracle.truncate(2000);
  driver.advance({&text}, 100, kBound);
}

TEST(KvCache, AMethodThatDropsRowsRefusesToCutIntoItsWindow) {
  auto options = options_for({layer(2, 1, 32)}, 4000);
  options.method = "streaming";
  options.method_overrides = {"steady.recent=100", "steady.seal=64"};
  Driver driver(options, 1);
  auto text = driver.start();
  driver.advance({&text}, 1000, 0);
  const std::uint32_t end = text.timeline.length();
  EXPECT_TRUE(text.timeline.truncate(end));
  for (const std::uint32_t length : {end - 90, 850u, 500u, 5u}) {
    const Status cut = text.timeline.truncate(length);
    ASSERT_FALSE(cut) << length;
    EXPECT_EQ(cut.error().code, ErrorCode::unsupported);
    EXPECT_EQ(text.timeline.length(), end);
  }
  driver.advance({&text}, 30, 0);
  EXPECT_TRUE(text.timeline.truncate(end + 1));
  EXPECT_TRUE(text.timeline.truncate(4));  // the sinks
  for (auto& oracle : text.layers) oracle.truncate(4);
  driver.advance({&text}, 60, kBound);
}

TEST(KvCache, ATimelineOfNoCacheIsEmptyAndRefuses) {
  Driver driver(options_for({layer(2, 1, 32)}, 100), 1);
  auto text = driver.start();
  driver.advance({&text}, 5, 0);
  Timeline moved_to = std::move(text.timeline), made_of_nothing;
  EXPECT_EQ(moved_to.length(), 5u);
  for (Timeline* none : {&text.timeline, &made_of_nothing}) {
    EXPECT_EQ(none->length(), 0u);
    EXPECT_EQ(none->fork().error().code, ErrorCode::invalid_argument);
    EXPECT_EQ(none->truncate(0).error().code, ErrorCode::invalid_argument);
  }
}

TEST(KvCache, EveryRowThatDecodeAttendsToIsCountedInBytes) {
  for (const char* method : {"exact", "streaming"}) {
    auto options = options_for({layer(6, 2, 32), layer(4, 1, 32, 40)}, 1000);
    options.method = method;
    options.method_overrides = {"steady.recent=100", "steady.seal=64"};
    Driver driver(options, 1);
    auto text = driver.start();
    for (int i = 0; i < 30; ++i) driver.advance({&text}, 16, 0);
    const CacheReport report = driver.cache->report();
    EXPECT_GT(report.rows_read, 0u);
    EXPECT_EQ(report.host_bytes_read, report.rows_read * 2 * 32 * sizeof(f16)) << method;
  }
}

// A device that holds the sealed rows of as many layers as make up so many thousandths of them.
std::uint64_t device_bytes(CacheOptions options, std::uint64_t permille) {
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.tiers.device = "host";
  options.tiers.device_bytes = std::uint64_t{1} << 28;
  const auto plan = KvCache::plan(options);
  EXPECT_TRUE(plan);
  return plan->total("device") * permille / 1000;
}

// A host budget that leaves room for so many thousandths of the rows, beside what must be there.
std::uint64_t host_bytes(CacheOptions options, std::uint64_t cached_permille) {
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.tiers.host_bytes = kAutoBytes;
  const auto plan = KvCache::plan(options);
  EXPECT_TRUE(plan);
  std::uint64_t fixed = 0, rows = 0;
  for (const MemoryLine& line : plan->lines) {
    if (line.tier == "disk") rows += line.bytes;
    if (line.tier == "host" && line.purpose != "row_cache") fixed += line.bytes;
  }
  return fixed + rows * cached_permille / 1000;
}

TEST(KvCache, PlacementNeverChangesAnAnswer) {
  struct Weather {
    std::uint32_t cached_permille;  // of the rows, in host memory; 1000 without a disk: their home
    std::uint64_t disk;
    int threads;
    const char* backend;
    std::uint32_t device_permille = 0;  // of the rows, on the device: 700 is the first layer's
  };
  const std::uint64_t disk = 64 << 20;
  const Weather weathers[] = {
      {1000, 0, 1, "auto"},      {1000, 0, 2, "auto"},         {0, disk, 2, "uring"},
      {0, disk, 1, "threads"},   {500, disk, 2, "uring"},      {500, disk, 1, "threads"},
      {60, disk, 2, "uring"},    {1000, disk, 2, "auto"},      {1000, 0, 2, "auto", 1000},
      {1000, 0, 1, "auto", 700}, {500, disk, 2, "uring", 700}, {0, disk, 1, "threads", 700}};
  const std::vector<std::string> int8 = {"keys.compress=int8", "values.compress=int8"};
  const std::pair<std::string, std::vector<std::string>> methods[] = {
      {"exact", {}}, {"sketch", {}}, {"exact", int8}, {"sketch", int8}};
  for (const auto& [method, overrides] : methods) {
    std::vector<float> first;
    for (const Weather& weather : weathers) {
      auto options = options_for({layer(6, 2, 64), layer(4, 2, 32)}, 3000);
      options.max_timelines = 1;
      options.method = method;
      options.method_overrides = overrides;
      options.tiers.disk_bytes = weather.disk;
      if (weather.device_permille > 0) {
        options.tiers.device_bytes = device_bytes(options, weather.device_permille);
        options.tiers.device = "host";
      }
      if (weather.disk > 0) options.tiers.host_bytes = host_bytes(options, weather.cached_permille);
      options.tiers.io_backend = weather.backend;
      Driver driver(options, weather.threads, 7);
      ASSERT_TRUE(driver.cache) << method;
      auto text = driver.start();
      std::vector<float> all = driver.advance({&text}, 2000, 0);
      for (int i = 0; i < 40; ++i) {
        const auto more = driver.advance({&text}, 1 + i % 3, 0);
        all.insert(all.end(), more.begin(), more.end());
      }
      const auto last = driver.advance({&text}, 100, 0);
      all.insert(all.end(), last.begin(), last.end());
      const CacheReport report = driver.cache->report();
      EXPECT_EQ(report.device_bytes_read > 0, weather.device_permille > 0) << method;
      EXPECT_EQ(driver.cache->usage().total("device") > 0, weather.device_permille > 0) << method;
      if (weather.disk > 0) {
        EXPECT_GT(report.disk_bytes_written, 0u);
        EXPECT_EQ(report.disk_bytes_read > 0, weather.cached_permille < 1000) << method;
        EXPECT_EQ(report.pages_verified > 0, weather.cached_permille < 1000) << method;
        EXPECT_EQ(report.row_cache_hits > 0, weather.cached_permille > 0) << method;
      } else {
        EXPECT_GT(report.host_bytes_read, 0u);
      }
      if (first.empty()) {
        first = all;
      } else {
        ASSERT_EQ(all.size(), first.size());
        EXPECT_EQ(std::memcmp(all.data(), first.data(), all.size() * sizeof(float)), 0)
            << method << ", cached " << weather.cached_permille << ", disk " << weather.disk << ", "
            << weather.threads << " threads, " << weather.backend << ", device "
            << weather.device_permille;
      }
    }
  }
}

// Whoever goes on may be another thread, which cannot wait for the first one's reads.
TEST(KvCache, APrefillThatIsCancelledLeavesNothingInFlight) {
  const std::uint32_t rows = 200;
  auto options = options_for({layer(6, 2, 64), layer(4, 2, 32)}, 6000);
  options.max_timelines = 1;
  options.tiers.disk_bytes = 64 << 20;
  options.tiers.host_bytes = host_bytes(options, 0);
  Driver driver(options, 2);
  auto text = driver.start();
  driver.advance({&text}, 5000, 0);
  std::vector<Token> at;
  for (std::uint32_t r = 0; r < rows; ++r)
    at.push_back({text.timeline.id(), text.timeline.length() + r});
  const std::vector<float> some(rows * 6 * 64, 0.5f);
  std::vector<float> out(rows * 6 * 64);
  int cancelled = 0;
  for (int answers = 0; answers < 24; ++answers) {
    std::atomic<int> asked = 0;
    ASSERT_TRUE(driver.cache->begin(at, Pass::prefill));
    ASSERT_TRUE(
        driver.cache->append(LayerId{0}, {some.data(), rows, 128}, {some.data(), rows, 128}));
    const Status attended =
        driver.cache->attend(LayerId{0}, {some.data(), rows, 384}, {out.data(), rows, 384},
                             [&] { return ++asked > answers; });
    cancelled += !attended && attended.error().code == ErrorCode::cancelled;
    driver.cache->rollback();
    std::thread([&] { driver.advance({&text}, 1, 0); }).join();
    for (std::uint32_t r = 0; r < rows; ++r) ++at[r].position;
  }
  EXPECT_GT(cancelled, 10);
}

// Reading everything in order would push each row out of a cache that is short of them just before
// it is wanted. What is in memory stays there, and what is not passes by: of two texts in turn the
// first has three quarters of the rows that fit for two, and the second none.
TEST(KvCache, ExactOverADiskIsAStaticSplit) {
  auto options = options_for({layer(6, 2, 64), layer(4, 2, 32)}, 3200);
  options.max_timelines = 2;
  options.tiers.disk_bytes = 64 << 20;
  options.tiers.host_bytes = host_bytes(options, 375);
  Driver driver(options, 2);
  Driver::Text texts[] = {driver.start(), driver.start()};
  for (Driver::Text& text : texts) driver.advance({&text}, 3000, 0);
  const std::uint64_t sealed = driver.cache->report().rows_sealed;  // of 2 KV heads, in 2 texts
  std::optional<CacheReport> first[2];
  for (int step = 0; step < 8; ++step) {
    const int t = step % 2;
    const CacheReport before = driver.cache->report();
    driver.advance({&texts[t]}, 1, 0);
    const CacheReport one = difference(driver.cache->report(), before);
    if (!first[t]) first[t] = one;
    EXPECT_EQ(one.row_cache_hits, first[t]->row_cache_hits) << step;
    EXPECT_EQ(one.row_cache_hits + one.row_cache_misses, sealed) << step;
    EXPECT_EQ(one.disk_bytes_read, first[t]->disk_bytes_read) << step;
  }
  EXPECT_NEAR(static_cast<double>(first[0]->row_cache_hits) / static_cast<double>(sealed), 0.75,
              0.1);
  EXPECT_EQ(first[1]->row_cache_hits, 0u);
}

// While a layer is attended the next one's rows are on their way: whatever happens before they are
// wanted, all of it here. Every step's answer, and what it read.
struct Eventful {
  std::vector<float> answers;
  std::vector<std::uint64_t> disk_bytes;  // of the steps that seal nothing
};
Eventful eventful(const CacheOptions& options, int threads) {
  Eventful all;
  Driver driver(options, threads, 11);
  Driver::Text one = driver.start(), other = driver.start();
  const auto advance = [&](std::vector<Driver::Text*> texts, std::uint32_t rows) {
    const CacheReport before = driver.cache->report();
    const auto more = driver.advance(std::move(texts), rows, 0);
    all.answers.insert(all.answers.end(), more.begin(), more.end());
    const CacheReport step = difference(driver.cache->report(), before);
    if (step.steps > 0 && step.rows_sealed == 0) all.disk_bytes.push_back(step.disk_bytes_read);
  };
  // As far as into some layer, whose successor's rows are on their way then.
  const auto give_up_a_step = [&](std::uint32_t layers) {
    const Token at{one.timeline.id(), one.timeline.length()};
    EXPECT_TRUE(driver.cache->begin({&at, 1}, Pass::decode));
    std::vector<float> row(6 * 64, 3.0f), out(6 * 64);
    for (std::uint32_t l = 0; l < layers; ++l) {
      const LayerSpec& s = driver.cache->layers()[l];
      const std::size_t kv = s.kv_heads * s.key_dim, q = s.q_heads * s.key_dim;
      EXPECT_TRUE(driver.cache->append(LayerId{l}, {row.data(), 1, kv}, {row.data(), 1, kv}));
      EXPECT_TRUE(driver.cache->attend(LayerId{l}, {row.data(), 1, q}, {out.data(), 1, q}));
    }
  };
  advance({&one}, 1500);
  advance({&other}, 900);
  for (std::uint32_t round = 0; round < 6; ++round) {
    for (int i = 0; i < 3; ++i) advance({&one}, 1);
    advance({&other}, 1);
    advance({&one, &other}, 1);
    give_up_a_step(1 + round % 3);
    driver.cache->rollback();
    advance({&one}, 2);
    {
      const Timeline fork = std::move(*one.timeline.fork());
      advance({&other}, 1);
    }
    std::thread([&] { advance({&one}, 1); }).join();
    if (round == 2) {
      EXPECT_TRUE(one.timeline.truncate(one.timeline.length() - 250));
    }
    if (round == 3) advance({&other}, 200);
    if (round == 4) {  // with rows of the step in progress
      give_up_a_step(2);
      one = {};
      one = driver.start();
      advance({&one}, 700);
    }
  }
  return all;
}

TEST(KvCache, WhatIsReadAheadIsInNoAnswerAndCountedWhenItIsWanted) {
  auto options = options_for({layer(6, 2, 64), layer(4, 2, 32, 64), layer(4, 1, 64)}, 1700);
  options.max_timelines = 3;
  const Eventful right = eventful(options, 2);
  options.tiers.disk_bytes = 64 << 20;
  std::map<std::uint32_t, std::vector<std::uint64_t>> read;  // by how much is cached
  const std::tuple<std::uint32_t, int, const char*> weathers[] = {
      {0, 2, "uring"}, {0, 1, "threads"}, {300, 1, "uring"}, {300, 2, "threads"}};
  for (const auto& [cached, threads, backend] : weathers) {
    SCOPED_TRACE(std::to_string(cached) + " permille cached, " + backend);
    options.tiers.host_bytes = host_bytes(options, cached);
    options.tiers.io_backend = backend;
    const Eventful here = eventful(options, threads);
    ASSERT_EQ(here.answers.size(), right.answers.size());
    EXPECT_EQ(std::memcmp(here.answers.data(), right.answers.data(),
                          right.answers.size() * sizeof(float)),
              0);
    ASSERT_EQ(here.disk_bytes.size(), right.disk_bytes.size());
    EXPECT_GT(*std::max_element(here.disk_bytes.begin(), here.disk_bytes.end()), 0u);
    if (read[cached].empty()) read[cached] = here.disk_bytes;
    EXPECT_EQ(here.disk_bytes, read[cached]);
    // Between two steps that nothing has come between.
    EXPECT_EQ(here.disk_bytes[1], here.disk_bytes[0]);
  }
}

// A prompt whose rows ask one thing at first and another at the end, and then a step that asks what
// its end asked: rows missed in the row cache by that step, and how many it read there.
std::pair<std::uint64_t, std::uint64_t> misses_after_prompt(std::uint32_t prompt, int threads) {
  LayerSpec spec = layer(6, 2, 64);
  spec.rope.inverse_frequency.clear();  // the same query picks the same rows at any position
  auto options = options_for({spec}, 4096);
  options.method = "sketch";
  options.max_timelines = 1;
  options.tiers.disk_bytes = 64 << 20;
  options.tiers.host_bytes = host_bytes(options, 100);
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  auto cache = std::move(*KvCache::create(options, threads, "auto"));
  Timeline timeline = std::move(*cache->start());
  std::mt19937 random(5);
  const std::size_t q_cols = 6 * 64, kv_cols = 2 * 64;
  const auto early = random_rows(random, q_cols, 2.0f), late = random_rows(random, q_cols, 2.0f);
  CacheReport before;
  for (const std::uint32_t rows : {prompt, 1u}) {
    before = cache->report();
    std::vector<Token> at;
    std::vector<float> q;
    for (std::uint32_t r = 0; r < rows; ++r) {
      at.push_back({timeline.id(), timeline.length() + r});
      const auto& asked = rows > 1 && r < rows / 2 ? early : late;
      q.insert(q.end(), asked.begin(), asked.end());
    }
    const auto k = random_rows(random, rows * kv_cols), v = random_rows(random, rows * kv_cols);
    std::vector<float> out(rows * q_cols);
    EXPECT_TRUE(cache->begin(at, rows > 1 ? Pass::prefill : Pass::decode));
    EXPECT_TRUE(cache->append(LayerId{0}, {k.data(), rows, kv_cols}, {v.data(), rows, kv_cols}));
    EXPECT_TRUE(cache->attend(LayerId{0}, {q.data(), rows, q_cols}, {out.data(), rows, q_cols}));
    EXPECT_TRUE(cache->commit());
  }
  const CacheReport step = difference(cache->report(), before);
  return {step.row_cache_misses, step.row_cache_misses + step.row_cache_hits};
}

// The prompt is asked without its sinks and tail, so the picks are not quite those of the step: a
// sixth is missed. With the first rows in the cache it would be nine of ten.
TEST(KvCache, TheRowCacheBeginsWithWhatTheEndOfThePromptPicks) {
  for (const std::uint32_t prompt : {3000u, 2000u}) {
    const auto [missed, read] = misses_after_prompt(prompt, 2);
    EXPECT_GE(read, 2 * 64u);
    EXPECT_LE(missed * 4, read) << prompt;
    EXPECT_EQ(misses_after_prompt(prompt, 1), std::pair(missed, read)) << prompt;
  }
}

// The same rows at the same positions, in calls of these lengths, maybe cut, and then `steps`
// decode steps: every answer that still counts, by layer and position.
std::vector<float> in_calls(const CacheOptions& options, const std::vector<std::uint32_t>& calls,
                            std::uint32_t steps, std::uint64_t* sealed,
                            std::optional<std::uint32_t> cut = std::nullopt) {
  CacheOptions of = options;
  of.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  auto cache = std::move(*KvCache::create(of, 2, "auto"));
  Timeline timeline = std::move(*cache->start());
  struct Rows {
    std::vector<float> k, v, q, out;
  };
  std::vector<Rows> layers;
  std::mt19937 random(21);
  for (const LayerSpec& s : cache->layers())
    layers.push_back({random_rows(random, options.max_positions * s.kv_heads * s.key_dim),
                      random_rows(random, options.max_positions * s.kv_heads * s.value_dim),
                      random_rows(random, options.max_positions * s.q_heads * s.key_dim, 2.0f),
                      std::vector<float>(options.max_positions * s.q_heads * s.value_dim)});
  const auto advance = [&](std::uint32_t rows, Pass pass) {
    const std::uint32_t first = timeline.length();
    std::vector<Token> at;
    for (std::uint32_t r = 0; r < rows; ++r) at.push_back({timeline.id(), first + r});
    EXPECT_TRUE(cache->begin(at, pass));
    for (std::uint32_t l = 0; l < layers.size(); ++l) {
      const auto part = [&](std::vector<float>& of_all) {
        const std::size_t cols = of_all.size() / options.max_positions;
        return MatView<float>(of_all.data() + first * cols, rows, cols);
      };
      EXPECT_TRUE(cache->append(LayerId{l}, part(layers[l].k), part(layers[l].v)));
      EXPECT_TRUE(cache->attend(LayerId{l}, part(layers[l].q), part(layers[l].out)));
    }
    EXPECT_TRUE(cache->commit());
  };
  for (const std::uint32_t rows : calls) advance(rows, Pass::prefill);
  if (cut) {
    EXPECT_TRUE(timeline.truncate(*cut));
    for (Rows& rows : layers)
      std::fill(rows.out.begin() + *cut * rows.out.size() / options.max_positions, rows.out.end(),
                0.0f);
  }
  for (std::uint32_t i = 0; i < steps; ++i) advance(1, Pass::decode);
  *sealed = cache->report().rows_sealed;
  std::vector<float> all;
  for (const Rows& rows : layers) all.insert(all.end(), rows.out.begin(), rows.out.end());
  return all;
}

TEST(KvCache, WhereAPrefillsCallsEndDoesNotShowWhereEveryRowIsReadAsItWas) {
  auto options = options_for({layer(6, 2, 32), layer(4, 1, 48, 300), layer(2, 1, 16)}, 3700);
  options.max_timelines = 1;
  std::uint64_t sealed = 0;
  const std::vector<float> once = in_calls(options, {3000}, 600, &sealed);
  EXPECT_EQ(sealed, 2 * 3072u);  // 4 sinks, then 512 at a time, at least 32 raw
  const std::vector<std::vector<std::uint32_t>> splits = {
      {700, 1900, 400}, {1, 2999}, {7, 16, 977, 1996, 4}, {2983, 17}};
  for (const auto& calls : splits) {
    std::uint64_t sealed_so = 0;
    const std::vector<float> so = in_calls(options, calls, 600, &sealed_so);
    EXPECT_EQ(sealed_so, sealed);
    ASSERT_EQ(so.size(), once.size());
    for (std::size_t i = 0; i < so.size(); ++i)
      ASSERT_EQ(so[i], once[i]) << "calls from " << calls[0] << " on, float " << i;
  }
}

// Decoding after a cut at `length` of a prefill of 3,000 rows, beside a prefill of `length`: the
// largest difference between their answers.
double difference_after_a_cut(const CacheOptions& options, std::uint32_t length) {
  std::uint64_t sealed = 0;
  const std::vector<float> direct = in_calls(options, {length}, 40, &sealed);
  const std::vector<float> cut = in_calls(options, {3000}, 40, &sealed, length);
  double worst = 0;
  for (std::size_t i = 0; i < direct.size(); ++i)
    worst = std::max(worst, std::abs(double{direct[i]} - cut[i]));
  return worst;
}

TEST(KvCache, ACutTextGoesOnAsOneThatWasOnlyReadSoFar) {
  const std::vector<std::string> int8 = {"keys.compress=int8", "values.compress=int8"};
  for (const char* method : {"exact", "sketch"})
    for (const std::uint64_t disk : {std::uint64_t{0}, std::uint64_t{64} << 20})
      for (const std::uint32_t length : {2999u, 2960u, 2590u, 1060u, 517u, 30u, 4u}) {
        SCOPED_TRACE(std::string(method) + " cut at " + std::to_string(length));
        auto options = options_for({layer(6, 2, 32), layer(4, 1, 48)}, 3100);
        options.method = method;
        options.tiers.disk_bytes = disk;
        EXPECT_EQ(difference_after_a_cut(options, length), 0.0);
      }
  auto coded = options_for({layer(6, 2, 32)}, 3100);
  coded.method_overrides = int8;
  const double worst = difference_after_a_cut(coded, 1060);
  EXPECT_GT(worst, 0.0);
  EXPECT_LT(worst, 0.05);
}

// The least length that a cut may leave, where rows have been dropped: one less is refused, and
// what is left there is a text that was only read so far.
TEST(KvCache, ACutIsMadeAsFarBackAsItsRowsAreKept) {
  auto windowed = options_for({layer(4, 2, 32), layer(2, 1, 32, 64)}, 3100);
  auto streaming = options_for({layer(2, 1, 32)}, 3100);
  streaming.method = "streaming";
  streaming.method_overrides = {"steady.recent=100", "steady.seal=64"};
  // A window forgets all but its own rows and half of the slack; a method that drops rows, whole
  // seals behind its sinks.
  const std::uint32_t in_window = 3000 - kWindowSlack / 2;
  const std::uint32_t in_tail = 4 + (3000 - 4 - 100) / 64 * 64 + 100;
  for (const auto& [options, least] : {std::pair{windowed, in_window}, {streaming, in_tail}}) {
    SCOPED_TRACE(options.method + " cut at " + std::to_string(least));
    Driver driver(options, 2);
    auto text = driver.start();
    driver.advance({&text}, 3000, 0);
    const Status cut = text.timeline.truncate(least - 1);
    ASSERT_FALSE(cut);
    EXPECT_EQ(cut.error().code, ErrorCode::unsupported);
    EXPECT_NE(cut.error().message.find("cut at " + std::to_string(least) + " or later"),
              std::string::npos)
        << cut.error().message;
    EXPECT_EQ(text.timeline.length(), 3000u);
    const Status made = text.timeline.truncate(least);
    ASSERT_TRUE(made) << made.error().message;
    EXPECT_EQ(difference_after_a_cut(options, least), 0.0);
  }
}

// Seen through a method that reads nothing else: sinks, and at least `recent` rows.
TEST(KvCache, TheRecentRowsAreRawAfterACut) {
  auto options = options_for({layer(2, 1, 32)}, 4000);
  options.method_overrides = {"select.by=nothing", "steady.recent=100", "steady.seal=128"};
  Driver driver(options, 1);
  for (const std::uint32_t prefilled : {0u, 1500u, 3000u}) {
    auto text = driver.start();
    if (prefilled > 0) driver.advance({&text}, prefilled, 0);
    while (text.timeline.length() < 3000) driver.advance({&text}, 15, 0);
    for (const std::uint32_t length : {2990u, 2840u, 2830u, 2700u, 1499u, 1400u, 300u, 104u, 60u}) {
      SCOPED_TRACE(length);
      ASSERT_TRUE(text.timeline.truncate(length));
      const std::uint64_t before = driver.cache->report().rows_read;
      driver.advance({&text}, 1, 0);
      const std::uint64_t raw = driver.cache->report().rows_read - before;
      EXPECT_GE(raw, std::min(4u + 100 + 1, length + 1));
      EXPECT_LE(raw, 4u + 100 + 128);
    }
  }
}

// Which rows are sealed depends on the length alone, whatever reads them.
TEST(KvCache, HowManyRowsAreSealedIsAFunctionOfTheLength) {
  auto options = options_for({layer(4, 2, 32)}, 3700);
  options.method = "sketch";
  std::uint64_t once = 0, so = 0;
  in_calls(options, {3000}, 100, &once);
  in_calls(options, {100, 1800, 1100}, 100, &so);
  EXPECT_EQ(once, so);
  in_calls(options, {2500}, 600, &so);
  EXPECT_EQ(once, so);
}

TEST(KvCache, RefusesWhatCannotBe) {
  auto options = options_for({layer(4, 2, 32)}, 100000);
  options.tiers.host_bytes = 1 << 20;
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  auto small = KvCache::create(options, 1, "auto");
  ASSERT_FALSE(small);
  EXPECT_EQ(small.error().code, ErrorCode::exhausted);
  EXPECT_NE(small.error().message.find("--kv-host"), std::string::npos) << small.error().message;

  options.tiers.host_bytes = kAutoBytes;
  options.method = "sketsch";
  auto misspelt = KvCache::create(options, 1, "auto");
  ASSERT_FALSE(misspelt);
  EXPECT_NE(misspelt.error().message.find("known: "), std::string::npos)
      << misspelt.error().message;

  options.method = "sketch";
  options.method_overrides = {"select.shares=0.5"};
  auto parameter = KvCache::create(options, 1, "auto");
  ASSERT_FALSE(parameter);
  EXPECT_NE(parameter.error().message.find("select.share"), std::string::npos);

  options.method_overrides.clear();
  options.layers[0].key_dim = 20;
  EXPECT_FALSE(KvCache::create(options, 1, "auto"));
}

TEST(KvCache, AStepThatIsRolledBackLeavesNoTrace) {
  Driver driver(options_for({layer(4, 2, 32)}, 3000), 2, 3);
  auto text = driver.start();
  driver.advance({&text}, 1000, kBound);
  const Token at{text.timeline.id(), 1000};
  ASSERT_TRUE(driver.cache->begin({&at, 1}, Pass::decode));
  std::vector<float> row(64, 3.0f);
  ASSERT_TRUE(driver.cache->append(LayerId{0}, {row.data(), 1, 64}, {row.data(), 1, 64}));
  driver.cache->rollback();
  EXPECT_EQ(text.timeline.length(), 1000u);
  driver.advance({&text}, 1, kBound);
  const Token wrong{text.timeline.id(), 2000};
  EXPECT_FALSE(driver.cache->begin({&wrong, 1}, Pass::decode));
}

TEST(KvCache, APassIsWhatTheCallerSaysWithinItsLimits) {
  Driver driver(options_for({layer(4, 2, 32), layer(2, 1, 16, 20)}, 3000), 2, 9);
  auto text = driver.start();
  for (const std::uint32_t rows : {1u, 16u, 700u, 3u}) {
    driver.advance({&text}, rows, kBound, Pass::prefill);
    driver.advance({&text}, std::min(rows, 16u), kBound, Pass::decode);
  }
  EXPECT_GT(driver.cache->report().rows_sealed, 0u);
  EXPECT_EQ(driver.cache->report().steps, 4u);

  auto other = driver.start();
  std::vector<Token> at;
  for (std::uint32_t r = 0; r < 17; ++r) at.push_back({other.timeline.id(), r});
  Status refused = driver.cache->begin(at, Pass::decode);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::invalid_argument);
  EXPECT_NE(refused.error().message.find("17 rows"), std::string::npos) << refused.error().message;
  at = {{text.timeline.id(), text.timeline.length()}, {other.timeline.id(), 0}};
  refused = driver.cache->begin(at, Pass::prefill);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("one timeline"), std::string::npos);
  EXPECT_TRUE(driver.cache->begin(at, Pass::decode));
  driver.cache->rollback();
}

TEST(KvCache, APrefillIsASpanAtMost) {
  auto options = options_for({layer(1, 1, 16)}, 100000);
  options.max_timelines = 1;
  Driver driver(options, 1);
  auto text = driver.start();
  std::vector<Token> at;
  for (std::uint32_t r = 0; r <= kSpanRows; ++r) at.push_back({text.timeline.id(), r});
  const Status refused = driver.cache->begin(at, Pass::prefill);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::invalid_argument);
  for (const char* part : {"32769 rows", "32768 at most", "span by span"})
    EXPECT_NE(refused.error().message.find(part), std::string::npos) << refused.error().message;
  at.pop_back();
  EXPECT_TRUE(driver.cache->begin(at, Pass::prefill));
  driver.cache->rollback();
}

// Each wrong call is refused, and the step goes on to the answer that it would have had.
TEST(KvCache, CallsOutOfOrderOrShapeAreErrorsThatLeaveTheStepAsItWas) {
  for (const std::size_t n : {std::size_t{2}, std::size_t{20}}) {  // decode, prefill
    Driver driver(options_for({layer(4, 2, 32), layer(2, 1, 16)}, 100), 1);
    KvCache& cache = *driver.cache;
    Timeline timeline = std::move(*cache.start()), undisturbed = std::move(*cache.start());
    std::mt19937 random(5);
    const auto x = random_rows(random, n * 512);
    std::vector<float> out(n * 512), first, second;
    const auto in = [&](std::size_t cols, std::size_t rows = 0) {
      return MatView<const float>(x.data(), rows ? rows : n, cols);
    };
    const auto to = [&](std::size_t cols) { return MatView<float>(out.data(), n, cols); };
    const auto begin = [&](const Timeline& t) {
      std::vector<Token> at;
      for (std::uint32_t r = 0; r < n; ++r) at.push_back({t.id(), t.length() + r});
      return cache.begin(at, n > kMaxStepRows ? Pass::prefill : Pass::decode);
    };
    const auto refused = [](const Status& status, const char* part) {
      ASSERT_FALSE(status) << part;
      EXPECT_EQ(status.error().code, ErrorCode::invalid_argument) << part;
      EXPECT_NE(status.error().message.find(part), std::string::npos) << status.error().message;
    };
    const LayerId l0{0}, l1{1}, none{2};

    refused(cache.append(l0, in(64), in(64)), "without a step");
    refused(cache.attend(l0, in(128), to(128)), "without a step");
    refused(cache.commit(), "without a step");
    ASSERT_TRUE(begin(timeline));
    refused(begin(timeline), "middle of a step");
    refused(timeline.truncate(0), "middle of a step");
    refused(cache.append(none, in(64), in(64)), "has 2 layers");
    refused(cache.append(l0, in(63), in(64)), "keys of");
    refused(cache.append(l0, in(64), in(65)), "values of");
    refused(cache.append(l0, in(64, n - 1), in(64)), "keys of");
    refused(cache.attend(l0, in(128), to(128)), "before its append()");
    refused(cache.commit(), "layer 0");
    ASSERT_TRUE(cache.append(l0, in(64), in(64)));
    refused(cache.append(l0, in(64), in(64)), "second time");
    if (n > kMaxStepRows) refused(cache.append(l1, in(16), in(16)), "before attend() of 0");
    refused(cache.attend(none, in(128), to(128)), "has 2 layers");
    refused(cache.attend(l0, in(127), to(128)), "queries of");
    refused(cache.attend(l0, in(128), to(64)), "out of");
    refused(cache.attend(l0, in(128, n - 1), to(128)), "queries of");
    refused(cache.commit(), "layer 0");
    ASSERT_TRUE(cache.attend(l0, in(128), to(128)));
    first = out;
    refused(cache.attend(l0, in(128), to(128)), "second time");
    refused(cache.commit(), "layer 1");
    Timeline late = std::move(*cache.start());  // in the middle of a step, and no part of it
    ASSERT_TRUE(cache.append(l1, in(16), in(16)));
    ASSERT_TRUE(cache.attend(l1, in(32), to(32)));
    ASSERT_TRUE(cache.commit());
    EXPECT_EQ(timeline.length(), n);
    EXPECT_EQ(late.length(), 0u);

    ASSERT_TRUE(begin(undisturbed));
    ASSERT_TRUE(cache.append(l0, in(64), in(64)));
    ASSERT_TRUE(cache.attend(l0, in(128), to(128)));
    EXPECT_TRUE(std::equal(out.begin(), out.begin() + static_cast<long>(n) * 128, first.begin()));
    refused(cache.commit(), "layer 1");
    cache.rollback();
    EXPECT_EQ(undisturbed.length(), 0u);
  }
}

// Prefill rows of one layer with `stop`; what attend() gave goes to `out`.
Status prefill_until(KvCache& cache, const Timeline& timeline, std::size_t n, const StopAsked& stop,
                     std::vector<float>* out) {
  std::mt19937 random(5);
  const auto k = random_rows(random, n * 64), v = random_rows(random, n * 64);
  const auto q = random_rows(random, n * 256);
  out->assign(n * 256, 0.0f);
  std::vector<Token> at;
  for (std::size_t r = 0; r < n; ++r)
    at.push_back({timeline.id(), timeline.length() + static_cast<std::uint32_t>(r)});
  TL_TRY(cache.begin(at, Pass::prefill));
  TL_TRY(cache.append(LayerId{0}, {k.data(), n, 64}, {v.data(), n, 64}));
  TL_TRY(cache.attend(LayerId{0}, {q.data(), n, 256}, {out->data(), n, 256}, stop));
  return cache.commit();
}

TEST(KvCache, APrefillStopsAtAnyFoldAndLeavesTheTimelineAsItWas) {
  constexpr int kThreads = 2;
  for (const std::uint64_t disk : {std::uint64_t{0}, std::uint64_t{64} << 20}) {
    SCOPED_TRACE(disk > 0 ? "rows on the disk" : "rows in memory");
    CacheOptions options = options_for({layer(4, 1, 64)}, 8192);
    options.tiers.disk_bytes = disk;
    Driver driver(options, kThreads);
    KvCache& cache = *driver.cache;
    Timeline timeline = std::move(*cache.start()), undisturbed = std::move(*cache.start());
    std::vector<float> expected, out;
    for (Timeline* each : {&timeline, &undisturbed})
      ASSERT_TRUE(prefill_until(cache, *each, 2000, {}, &out));

    std::atomic<int> calls = 0;
    const auto stop_at = [&calls](int call) { return [&calls, call] { return ++calls == call; }; };
    ASSERT_TRUE(prefill_until(cache, undisturbed, 500, stop_at(-1), &expected));
    const int all = calls;
    EXPECT_GT(all, 2000 / kFoldRows * 500 / 64);  // for each fold of the past, each tile
    // It is asked after each wave as well; how many a disk's folds come in is the disk's affair.
    const int last = disk > 0 ? all * 3 / 4 : all;
    for (const int call : {1, 2, all / 3, all / 2, last}) {
      SCOPED_TRACE(call);
      calls = 0;
      const Status status = prefill_until(cache, timeline, 500, stop_at(call), &out);
      ASSERT_FALSE(status);  // although every later answer was no
      EXPECT_EQ(status.error().code, ErrorCode::cancelled);
      EXPECT_LE(calls, call + kThreads);
      EXPECT_EQ(cache.commit().error().code, ErrorCode::invalid_argument);
      cache.rollback();
      EXPECT_EQ(timeline.length(), 2000u);
    }
    ASSERT_TRUE(prefill_until(cache, timeline, 500, {}, &out));
    EXPECT_EQ(out, expected);
  }
}

}  // namespace
}  // namespace thermocline
