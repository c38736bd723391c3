// Caches of one engine that share its limits, under random sequences of what both can be told: what
// is taken is what they hold or were promised, never more than there is; what is refused changes
// nothing; and what others do never shows in an answer.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "runtime/thermocline.h"
#include "tests/support/temporary_folder.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kKiB = std::uint64_t{1} << 10, kMiB = std::uint64_t{1} << 20;
constexpr std::size_t kCaches = 3;
constexpr std::uint32_t kMostTimelines = 3;
const std::string kSource = THERMOCLINE_SOURCE_DIR;

std::unique_ptr<Engine> open_engine(const TierLimits& limits) {
  EngineOptions options;
  options.model_path = kSource + "/tests/golden/tiny/llama_mixed.gguf";
  options.threads = 2;
  options.limits = limits;
  auto engine = Engine::open(options);
  EXPECT_TRUE(engine) << engine.error().message;
  return std::move(*engine);
}

// A cache under the limits, and its twin of an engine without any, which is told the same.
struct Twins {
  CacheOptions options;
  std::unique_ptr<KvCache> cache, free;
  std::uint64_t host = 0, disk = 0;  // that were promised to it
  std::uint64_t rows_read = 0;       // as of the last step
  struct Text {
    Timeline timeline, free;
  };
  std::vector<Text> texts;  // gone before the caches: declared after them
};

class Performance {
 public:
  Performance(unsigned seed, const TierLimits& limits)
      : random_(seed),
        limits_(limits),
        engine_(open_engine(limits)),
        free_engine_(open_engine({})) {}

  void go(int commands) {
    for (int i = 0; i < commands && !::testing::Test::HasFailure(); ++i) {
      SCOPED_TRACE("command " + std::to_string(i));
      command();
      conserve();
    }
    for (auto& twins : caches_) twins.reset();
    EXPECT_EQ(engine_->usage().total("host") + engine_->usage().total("disk"), 0u);
  }

  std::uint64_t opened = 0, refused_caches = 0, refused_cuts = 0, beyond = 0, rows_read = 0;

 private:
  std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }
  int token() { return static_cast<int>(below(250)); }

  void command() {
    std::optional<Twins>& twins = caches_[below(kCaches)];
    if (!twins) return open(&twins);
    if (below(25) == 0) return twins.reset();
    if (twins->texts.empty()) return start(*twins);
    const std::uint32_t which = below(static_cast<std::uint32_t>(twins->texts.size()));
    Twins::Text& text = twins->texts[which];
    switch (below(9)) {
      case 0:
        return start(*twins);
      case 1:
        return fork(*twins, text);
      case 2:
        twins->texts.erase(twins->texts.begin() + which);
        return;
      case 3:
      case 4:
        return truncate(text);
      case 5:
      case 6:
        return prefill(*twins, text);
      default:
        for (std::uint32_t steps = 1 + below(20); steps > 0; --steps) step(*twins);
    }
  }

  void open(std::optional<Twins>* into) {
    Twins made;
    CacheOptions& options = made.options;
    options.method = below(2) ? "exact" : "sketch";
    options.method_directory = kSource + "/configs/methods";
    options.method_overrides = {"steady.recent=16", "steady.seal=64"};
    options.max_positions = 300 + 300 * below(3);
    options.max_timelines = 1 + below(kMostTimelines);
    options.tiers.directory = folder_.path();
    options.tiers.disk_bytes = below(2) ? 16 * kMiB : 0;
    options.tiers.host_bytes = below(2) ? kAutoBytes : 12 * kMiB;
    const MemoryPlan before = engine_->usage();
    const auto plan = engine_->plan(options);
    auto cache = engine_->open_cache(options);
    ASSERT_EQ(plan.has_value(), cache.has_value());
    if (!cache) {
      ++refused_caches;
      EXPECT_EQ(cache.error().code, ErrorCode::exhausted) << cache.error().message;
      EXPECT_EQ(cache.error().message, plan.error().message);
      EXPECT_EQ(engine_->usage().total("host"), before.total("host"));
      EXPECT_EQ(engine_->usage().total("disk"), before.total("disk"));
      return;
    }
    ++opened;
    const auto peak = [&](const std::string& tier) {
      const auto found = plan->peak_bytes.find(tier);
      return found == plan->peak_bytes.end() ? 0 : found->second;
    };
    made.host = peak("host");
    made.disk = peak("disk");
    made.cache = std::move(*cache);
    auto free = free_engine_->open_cache(options);
    ASSERT_TRUE(free) << free.error().message;
    made.free = std::move(*free);
    *into = std::move(made);
  }

  void start(Twins& twins) {
    if (twins.texts.size() == twins.options.max_timelines) return;
    auto timeline = twins.cache->start(), free = twins.free->start();
    ASSERT_TRUE(timeline) << "it was promised: " << timeline.error().message;
    ASSERT_TRUE(free);
    twins.texts.push_back({std::move(*timeline), std::move(*free)});
  }

  void fork(Twins& twins, const Twins::Text& text) {
    if (twins.texts.size() == twins.options.max_timelines) return;
    auto timeline = text.timeline.fork(), free = text.free.fork();
    ASSERT_TRUE(timeline) << "it was promised: " << timeline.error().message;
    ASSERT_TRUE(free);
    twins.texts.push_back({std::move(*timeline), std::move(*free)});
  }

  // It may need what nobody was promised: room for new segments beside those that it cuts.
  void truncate(Twins::Text& text) {
    const std::uint32_t before = text.timeline.length(), length = below(before + 1);
    const Status cut = text.timeline.truncate(length);
    if (!cut) {
      ++refused_cuts;
      EXPECT_EQ(cut.error().code, ErrorCode::exhausted) << cut.error().message;
      EXPECT_EQ(text.timeline.length(), before);
      return;
    }
    const Status same = text.free.truncate(length);
    ASSERT_TRUE(same) << same.error().message;
  }

  void prefill(Twins& twins, Twins::Text& text) {
    const std::uint32_t room = twins.options.max_positions - text.timeline.length();
    std::vector<int> tokens(std::min(room, 1 + below(300)));
    if (tokens.empty()) return;
    std::generate(tokens.begin(), tokens.end(), [&] { return token(); });
    std::vector<float> logits(engine_->model().vocabulary), due(logits.size());
    const Status read = engine_->prefill(text.timeline, tokens, logits, {});
    ASSERT_TRUE(read) << "it was promised: " << read.error().message;
    ASSERT_TRUE(free_engine_->prefill(text.free, tokens, due, {}));
    expect_same(logits, due);
  }

  void step(Twins& twins) {
    std::vector<Feed> feeds, free;
    for (Twins::Text& text : twins.texts) {
      if (text.timeline.length() == twins.options.max_positions || below(3) == 0) continue;
      feeds.push_back({&text.timeline, token()});
      free.push_back({&text.free, feeds.back().token});
    }
    if (feeds.empty()) return;
    const std::size_t vocabulary = engine_->model().vocabulary;
    std::vector<float> logits(feeds.size() * vocabulary), due(logits.size());
    const Status done = engine_->step(feeds, {logits.data(), feeds.size(), vocabulary});
    ASSERT_TRUE(done) << "it was promised: " << done.error().message;
    ASSERT_TRUE(free_engine_->step(free, {due.data(), free.size(), vocabulary}));
    expect_same(logits, due);
    const std::uint64_t all_read = twins.cache->report().rows_read;
    rows_read += std::exchange(twins.rows_read, all_read) < all_read;
  }

  static void expect_same(const std::vector<float>& logits, const std::vector<float>& due) {
    EXPECT_EQ(std::memcmp(logits.data(), due.data(), due.size() * sizeof(float)), 0);
  }

  void conserve() {
    std::uint64_t host = 0, disk = 0;
    for (const std::optional<Twins>& twins : caches_) {
      if (!twins) continue;
      const MemoryPlan held = twins->cache->usage();
      host += std::max(twins->host, held.total("host"));
      disk += std::max(twins->disk, held.total("disk"));
      beyond += held.total("host") > twins->host || held.total("disk") > twins->disk;
    }
    const MemoryPlan taken = engine_->usage();
    EXPECT_EQ(taken.total("host"), host);
    EXPECT_EQ(taken.total("disk"), disk);
    EXPECT_LE(host, limits_.host_bytes);
    EXPECT_LE(disk, limits_.disk_bytes);
  }

  std::mt19937 random_;
  const TierLimits limits_;
  const test::TemporaryFolder folder_{"shared-limits"};
  std::unique_ptr<Engine> engine_, free_engine_;
  std::optional<Twins> caches_[kCaches];
};

TEST(SharedLimitsProperty, CachesOfAnEngineTakeWhatTheyWerePromisedAndNoMoreThanThereIs) {
  std::uint64_t opened = 0, refused = 0, cuts = 0, beyond = 0, read = 0;
  for (unsigned seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    // Of a cache on the disk staging alone takes 8 MiB: one has room, or two.
    Performance run(seed, {.host_bytes = (1 + seed % 2) * 8 * kMiB + seed * 300 * kKiB,
                           .disk_bytes = seed * 150 * kKiB});
    run.go(250);
    if (HasFailure()) return;
    opened += run.opened;
    refused += run.refused_caches;
    cuts += run.refused_cuts;
    beyond += run.beyond;
    read += run.rows_read;
  }
  std::printf("%llu caches, %llu refused; %llu cuts refused; %llu times beyond a plan\n",
              static_cast<unsigned long long>(opened), static_cast<unsigned long long>(refused),
              static_cast<unsigned long long>(cuts), static_cast<unsigned long long>(beyond));
  EXPECT_GT(opened, 30u);
  EXPECT_GT(refused, 30u);
  EXPECT_GT(cuts, 0u);
  EXPECT_GT(read, 100u);
}

}  // namespace
}  // namespace thermocline
