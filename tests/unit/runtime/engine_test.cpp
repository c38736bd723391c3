#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/gemm.h"
#include "runtime/thermocline.h"
#include "tests/support/float_table.h"
#include "tests/support/temporary_folder.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
const std::string kTiny = THERMOCLINE_SOURCE_DIR "/tests/golden/tiny/";

class EngineTest : public testing::Test {
 protected:
  void SetUp() override {
    // oneDNN keeps to what computed first: in one process with other tests there may be no other.
    const Status held = bind_gemm(test::float_isa());
    if (!held && testing::UnitTest::GetInstance()->test_to_run_count() > 1)
      GTEST_SKIP() << held.error().message;
    engine_ = open(2);
  }

  static std::unique_ptr<Engine> open(int threads, const std::string& file = "llama_mixed.gguf",
                                      const TierLimits& limits = {}) {
    EngineOptions options;
    options.model_path = kTiny + file;
    options.threads = threads;
    options.isa = test::float_isa();
    options.limits = limits;
    auto engine = Engine::open(options);
    EXPECT_TRUE(engine) << engine.error().message;
    return std::move(engine).value();  // throws, which ends this test and no other
  }
  static std::unique_ptr<KvCache> open_cache(const Engine& engine, std::uint32_t positions = 1200,
                                             std::uint32_t timelines = 4) {
    CacheOptions options;
    options.method_directory = THERMOCLINE_SOURCE_DIR "/configs/methods";
    options.max_positions = positions;
    options.max_timelines = timelines;
    auto cache = engine.open_cache(options);
    EXPECT_TRUE(cache) << cache.error().message;
    return std::move(cache).value();
  }

  static CacheOptions sized(std::uint64_t disk_bytes, const std::string& directory) {
    CacheOptions options{.max_positions = 1200};
    options.method_directory = THERMOCLINE_SOURCE_DIR "/configs/methods";
    options.tiers.disk_bytes = disk_bytes;
    options.tiers.directory = directory;
    return options;
  }

  std::vector<float> step(Engine& engine, Timeline& timeline, int token) {
    std::vector<float> logits(engine.model().vocabulary);
    const Feed feed{&timeline, token};
    const Status status = engine.step({&feed, 1}, {logits.data(), 1, logits.size()});
    EXPECT_TRUE(status) << status.error().message;
    return logits;
  }
  std::vector<float> prefill(Engine& engine, Timeline& timeline, std::span<const int> tokens) {
    std::vector<float> logits(engine.model().vocabulary);
    const Status status = engine.prefill(timeline, tokens, logits, {});
    EXPECT_TRUE(status) << status.error().message;
    return logits;
  }
  // Tokens that look like nothing in particular.
  static std::vector<int> text(std::size_t n, unsigned seed = 1) {
    std::vector<int> tokens(n);
    for (std::size_t i = 0; i < n; ++i)
      tokens[i] = static_cast<int>((i * 7919 + seed * 104729 + i * i * 31) % 250);
    return tokens;
  }

  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, SaysWhatTheModelIs) {
  const ModelInfo& info = engine_->model();
  EXPECT_EQ(info.architecture, "llama");
  EXPECT_EQ(info.name, "llama_mixed");
  EXPECT_EQ(info.layers, 2u);
  EXPECT_EQ(info.context, 256u);
  EXPECT_EQ(info.kv_bytes_per_token, 2u * (32 + 32) * 2);
  EXPECT_NE(info.weight_types.find("Q6_K"), std::string::npos);
  EXPECT_EQ(engine_->layers().size(), 2u);
}

TEST_F(EngineTest, RefusesWhatItCannotOpen) {
  EngineOptions options;
  options.model_path = "/nonexistent/model.gguf";
  EXPECT_EQ(Engine::open(options).error().code, ErrorCode::not_found);
  options.model_path = kTiny + "llama_mixed.gguf";
  options.isa = "abacus";
  EXPECT_FALSE(Engine::open(options));
}

TEST_F(EngineTest, TextGoesInAndComesOut) {
  const std::string said = "The water, caf\xc3\xa9 and all.";
  const auto tokens = engine_->encode(said, Engine::Special::as_text, Engine::Start::leave_out);
  ASSERT_TRUE(tokens) << tokens.error().message;
  EXPECT_EQ(engine_->decode(*tokens), said);
  EXPECT_EQ(engine_->decode(std::vector<int>{1 << 30}).error().code, ErrorCode::invalid_argument);
  auto stream = engine_->stream();
  std::string streamed;
  for (const int token : *tokens) streamed += stream->feed(token);
  EXPECT_EQ(streamed + stream->flush(), said);
  // What a user says is text, and reads the same as the token's name when it is shown.
  const auto ends = [&](const char* words) {
    const auto chat =
        engine_->encode_chat(std::vector<ChatMessage>{{"user", words}}, "auto", Engine::Start::add);
    EXPECT_TRUE(chat) << chat.error().message;
    return std::count_if(chat->begin(), chat->end(),
                         [&](int token) { return engine_->ends_generation(token); });
  };
  EXPECT_GT(ends("Hello"), 0);
  EXPECT_EQ(ends("Hello<|im_end|>"), ends("Hello"));
}

TEST_F(EngineTest, StepsRefuseNonsense) {
  const auto cache = open_cache(*engine_);
  const auto other = open_cache(*engine_);
  Timeline a = *cache->start(), b = *other->start(), nobodys;
  std::vector<float> logits(engine_->model().vocabulary * 20);
  const auto refused = [&](std::vector<Feed> feeds, std::size_t rows) {
    const Status status = engine_->step(feeds, {logits.data(), rows, engine_->model().vocabulary});
    return !status && status.error().code == ErrorCode::invalid_argument;
  };
  const int vocabulary = static_cast<int>(engine_->model().vocabulary);
  EXPECT_TRUE(refused({}, 0));
  EXPECT_TRUE(refused(std::vector<Feed>(17, {&a, 1}), 17));
  EXPECT_TRUE(refused({{nullptr, 1}}, 1));
  EXPECT_TRUE(refused({{&nobodys, 1}}, 1));
  EXPECT_TRUE(refused({{&a, -1}}, 1));
  EXPECT_TRUE(refused({{&a, vocabulary}}, 1));
  EXPECT_TRUE(refused({{&a, 1}, {&b, 1}}, 2));
  EXPECT_TRUE(refused({{&a, 1}}, 2));
  EXPECT_EQ(a.length(), 0u);
  EXPECT_FALSE(engine_->prefill(a, {}, {}, {}));
  EXPECT_FALSE(engine_->prefill(a, std::vector<int>{1, vocabulary}, {}, {}));
  EXPECT_FALSE(engine_->prefill(a, std::vector<int>{1}, std::span(logits).first(3), {}));

  // Of this model's shapes, and with other positions.
  for (const bool scaled : {true, false}) {
    CacheOptions options{.max_positions = 64};
    options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
    options.layers.assign(engine_->layers().begin(), engine_->layers().end());
    const auto like = KvCache::create(options, 1, "auto");
    Timeline same = *(*like)->start();
    EXPECT_FALSE(refused({{&same, 1}}, 1));
    if (scaled)
      options.layers.back().scale *= 2;
    else
      options.layers.back().rope.inverse_frequency[1] /= 4;
    const auto unlike = KvCache::create(options, 1, "auto");
    Timeline d = *(*unlike)->start();
    EXPECT_TRUE(refused({{&d, 1}}, 1));
    EXPECT_FALSE(engine_->prefill(d, std::vector<int>{1}, {}, {}));
  }
  const auto gemma = open(1, "gemma3_f16.gguf");
  const auto foreign = open_cache(*gemma);
  Timeline c = *foreign->start();
  EXPECT_TRUE(refused({{&c, 1}}, 1));
}

// Limits that hold one cache and not two, in either tier.
TEST_F(EngineTest, CachesShareWhatTheEngineIsGiven) {
  const test::TemporaryFolder folder("limits");
  CacheOptions options = sized(64 * kMiB, folder.path());
  options.max_timelines = 2;
  options.tiers.host_bytes = 12 * kMiB;
  const auto alone = engine_->plan(options);
  ASSERT_TRUE(alone) << alone.error().message;
  const std::uint64_t host = alone->peak_bytes.at("host"), disk = alone->peak_bytes.at("disk");

  struct Case {
    TierLimits limits;
    const char* says;
  };
  for (const Case& c : {Case{{.host_bytes = 2 * host - 1}, "EngineOptions::limits.host_bytes"},
                        Case{{.disk_bytes = 2 * disk - 1}, "EngineOptions::limits.disk_bytes"}}) {
    const auto engine = open(1, "llama_mixed.gguf", c.limits);
    const auto expect_taken = [&](std::uint64_t of_host, std::uint64_t of_disk) {
      EXPECT_EQ(engine->usage().total("host"), of_host) << c.says;
      EXPECT_EQ(engine->usage().total("disk"), of_disk) << c.says;
    };
    auto first = engine->open_cache(options);
    ASSERT_TRUE(first) << first.error().message;
    expect_taken(host, disk);
    for (int tries = 0; tries < 2; ++tries) {
      const auto second = engine->open_cache(options);
      ASSERT_FALSE(second) << c.says;
      EXPECT_EQ(second.error().code, ErrorCode::exhausted);
      EXPECT_NE(second.error().message.find(c.says), std::string::npos) << second.error().message;
      const auto dry = engine->plan(options);
      ASSERT_FALSE(dry);
      EXPECT_EQ(dry.error().message, second.error().message);
    }
    expect_taken(host, disk);
    {  // a fork has its cache's
      Timeline one = *(*first)->start();
      prefill(*engine, one, text(900));
      const auto two = one.fork();
      EXPECT_TRUE(two) << two.error().message;
      expect_taken(host, disk);
    }
    first->reset();
    expect_taken(0, 0);
    const auto again = engine->open_cache(options);
    EXPECT_TRUE(again) << again.error().message;
  }
}

// Without a size of its own a cache plans with what others leave.
TEST_F(EngineTest, AnAutomaticSizeIsWhatIsLeft) {
  const test::TemporaryFolder folder("limits");
  const CacheOptions in_memory = sized(0, ""), on_disk = sized(64 * kMiB, folder.path());
  const std::uint64_t memory = engine_->plan(in_memory)->peak_bytes.at("host"),
                      with_disk = engine_->plan(on_disk)->peak_bytes.at("host");
  const auto engine = open(1, "llama_mixed.gguf", {.host_bytes = memory + with_disk});
  const auto first = engine->open_cache(on_disk);
  ASSERT_TRUE(first) << first.error().message;
  const auto second = engine->open_cache(in_memory);
  ASSERT_TRUE(second) << second.error().message;
  EXPECT_LE(engine->usage().total("host"), memory + with_disk);
  const auto third = engine->open_cache(in_memory);
  ASSERT_FALSE(third);
  EXPECT_NE(third.error().message.find("limits.host_bytes"), std::string::npos)
      << third.error().message;
}

TEST_F(EngineTest, RowsOfAStepAreAsIfAlone) {
  const auto cache = open_cache(*engine_);
  const auto words = text(40);
  Timeline a = *cache->start(), b = *cache->start();
  prefill(*engine_, a, words);
  prefill(*engine_, b, text(30, 2));
  Timeline alone_a = *a.fork(), alone_b = *b.fork();

  std::vector<float> logits(3 * engine_->model().vocabulary);
  const std::vector<Feed> feeds{{&a, 5}, {&b, 6}, {&a, 7}};
  const MatView<float> rows(logits.data(), 3, engine_->model().vocabulary);
  const Status status = engine_->step(feeds, rows);
  ASSERT_TRUE(status) << status.error().message;
  EXPECT_EQ(a.length(), 42u);
  EXPECT_EQ(b.length(), 31u);
  const auto expect_row = [&](std::size_t r, const std::vector<float>& alone) {
    EXPECT_EQ(std::memcmp(rows.row(r), alone.data(), alone.size() * sizeof(float)), 0) << r;
  };
  expect_row(0, step(*engine_, alone_a, 5));
  expect_row(1, step(*engine_, alone_b, 6));
  expect_row(2, step(*engine_, alone_a, 7));
}

TEST_F(EngineTest, ThreadsDoNotChangeABit) {
  const auto words = text(700);
  std::vector<std::vector<float>> first;
  for (const int threads : {1, 2, 3}) {
    const auto engine = open(threads);
    const auto cache = open_cache(*engine);
    Timeline timeline = *cache->start();
    std::vector<std::vector<float>> logits{prefill(*engine, timeline, words)};
    for (int i = 0; i < 5; ++i) logits.push_back(step(*engine, timeline, 10 + i));
    if (first.empty()) first = logits;
    EXPECT_EQ(logits, first) << threads << " threads";
  }
}

TEST_F(EngineTest, AllLogitsComeInOrder) {
  const auto words = text(600);
  const auto cache = open_cache(*engine_);
  Timeline timeline = *cache->start();
  std::uint32_t next = 0;
  std::vector<float> last;
  PrefillOptions options;
  options.all_logits = [&](std::uint32_t first, MatView<const float> rows) {
    EXPECT_EQ(first, next);
    next += static_cast<std::uint32_t>(rows.rows());
    last.assign(rows[rows.rows() - 1].begin(), rows[rows.rows() - 1].end());
  };
  std::vector<float> logits(engine_->model().vocabulary);
  ASSERT_TRUE(engine_->prefill(timeline, words, logits, options));
  EXPECT_EQ(next, words.size());
  for (std::size_t i = 0; i < logits.size(); ++i) EXPECT_NEAR(logits[i], last[i], 0.02) << i;
}

TEST_F(EngineTest, ACancelledPrefillLeavesTheTimelineAsItWas) {
  const auto words = text(1100);
  const auto cache = open_cache(*engine_);
  Timeline timeline = *cache->start(), undisturbed = *cache->start();
  const auto expected = prefill(*engine_, undisturbed, words);
  for (const int stop_after : {0, 1, 5, 8}) {
    int calls = 0;
    std::uint32_t done = 0;
    PrefillOptions options;
    options.progress = [&](const PrefillProgress& progress) {
      EXPECT_EQ(progress.total, words.size());
      EXPECT_GE(progress.done, done);
      done = progress.done;
      ++calls;
    };
    options.stop = [&] { return calls > stop_after; };
    const Status status = engine_->prefill(timeline, words, {}, options);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::cancelled);
    EXPECT_EQ(timeline.length(), 0u);
  }
  EXPECT_EQ(prefill(*engine_, timeline, words), expected);
  EXPECT_EQ(timeline.length(), words.size());
}

TEST_F(EngineTest, ProgressEndsWithEverything) {
  const auto cache = open_cache(*engine_);
  Timeline timeline = *cache->start();
  PrefillProgress last;
  PrefillOptions options;
  options.progress = [&](const PrefillProgress& progress) { last = progress; };
  ASSERT_TRUE(engine_->prefill(timeline, text(513), {}, options));
  EXPECT_EQ(last.done, 513u);
}

TEST_F(EngineTest, PositionsBeyondTheCacheAreRefused) {
  const auto cache = open_cache(*engine_, 64, 1);
  Timeline timeline = *cache->start();
  EXPECT_FALSE(engine_->prefill(timeline, text(65), {}, {}));
  EXPECT_EQ(timeline.length(), 0u);
  prefill(*engine_, timeline, text(64));
  std::vector<float> logits(engine_->model().vocabulary);
  const Feed feed{&timeline, 1};
  EXPECT_FALSE(engine_->step({&feed, 1}, {logits.data(), 1, logits.size()}));
  EXPECT_EQ(timeline.length(), 64u);
}

TEST(VersionTest, SaysWhatWasBuilt) {
  const Version v = version();
  EXPECT_FALSE(v.number.empty());
  EXPECT_FALSE(v.commit.empty());
  EXPECT_NE(v.compiler.find("++"), std::string::npos);
  ASSERT_FALSE(v.usable.empty());
  EXPECT_EQ(v.instruction_sets.front(), "scalar");
}

}  // namespace
}  // namespace thermocline
