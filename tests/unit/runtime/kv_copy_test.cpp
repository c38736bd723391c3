// Texts joined into one timeline, and timelines that another cache seals by its own method.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "runtime/kv_cache.h"
#include "tests/support/float_table.h"
#include "tests/support/written_rows.h"
#include "tiers/block.h"

namespace thermocline {
namespace {

CacheOptions options_for(const char* method, std::vector<LayerSpec> layers) {
  CacheOptions options;
  options.layers = std::move(layers);
  options.method = method;
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.max_positions = 12000;
  options.max_timelines = 2;
  options.tiers.directory = ::testing::TempDir() + "thermocline-copy";
  return options;
}

std::unique_ptr<KvCache> open(const CacheOptions& options, const std::string& isa = "auto") {
  auto cache = KvCache::create(options, 2, isa);
  EXPECT_TRUE(cache) << (cache ? "" : cache.error().message);
  return cache ? std::move(*cache) : nullptr;
}

std::vector<LayerSpec> plain_layers() {
  return {plain_layer(2, 3, 32, 48), plain_layer(1, 2, 64, 64), plain_layer(2, 1, 32, 32, 100)};
}

TEST(KvCopy, IsWhatThisCacheWouldHaveRead) {
  struct Case {
    const char *from, *into;
    bool disk;
  };
  for (const Case& each : {Case{"exact", "sketch", false}, Case{"exact", "sketch", true},
                           Case{"sketch", "exact", false}}) {
    CacheOptions source = options_for(each.from, plain_layers());
    CacheOptions target = options_for(each.into, plain_layers());
    source.method_overrides = {"steady.recent=40"};
    if (each.disk) target.tiers.disk_bytes = std::uint64_t{1} << 30;
    const auto one = open(source), other = open(target);
    ASSERT_TRUE(one && other);
    const Timeline written = std::move(*one->start());
    const Timeline copied = std::move(*other->start()), read = std::move(*other->start());
    constexpr std::uint32_t kRows = kSegmentRows + 500;  // more than one segment
    ASSERT_TRUE(advance(one.get(), written, kRows, Pass::prefill));
    const Status done = other->copy(written, copied);
    ASSERT_TRUE(done) << done.error().message;
    ASSERT_EQ(copied.length(), kRows);
    ASSERT_TRUE(advance(other.get(), read, kRows, Pass::prefill));
    for (int step = 0; step < 3; ++step)
      ASSERT_EQ(*advance(other.get(), copied, 1, Pass::decode),
                *advance(other.get(), read, 1, Pass::decode))
          << each.from << " to " << each.into << (each.disk ? " on disk" : "");
  }
}

TEST(KvCopy, RefusesWhatItCannotDoAndLeavesTheTargetEmpty) {
  const auto one = open(options_for("exact", plain_layers()));
  const auto streaming = open(options_for("streaming", plain_layers()));
  const auto other = open(options_for("sketch", plain_layers()));
  CacheOptions small = options_for("sketch", plain_layers());
  small.max_positions = 500;
  const auto short_one = open(small);
  const auto narrow = open(options_for("sketch", {plain_layer(2, 3, 32, 48)}));
  const Timeline written = std::move(*one->start());
  ASSERT_TRUE(advance(one.get(), written, kSegmentRows + 100, Pass::prefill));
  Timeline into = std::move(*other->start());
  EXPECT_EQ(one->copy(written, written).error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(other->copy(Timeline(), into).error().code, ErrorCode::invalid_argument);
  const Timeline in_narrow = std::move(*narrow->start()), in_short = std::move(*short_one->start());
  EXPECT_NE(narrow->copy(written, in_narrow).error().message.find("different layers"),
            std::string::npos);
  EXPECT_EQ(short_one->copy(written, in_short).error().code, ErrorCode::exhausted);
  const Timeline dropped = std::move(*streaming->start());
  ASSERT_TRUE(advance(streaming.get(), dropped, 4000, Pass::prefill));
  EXPECT_EQ(other->copy(dropped, into).error().code, ErrorCode::unsupported);
  for (const char* watching : {"think", "allot3", "retrieval_attention", "snapkv", "h2o"}) {
    const auto cache = open(options_for(watching, plain_layers()));
    const Timeline empty = std::move(*cache->start());
    const Status refused = cache->copy(written, empty);
    ASSERT_FALSE(refused) << watching;
    EXPECT_EQ(refused.error().code, ErrorCode::unsupported);
    EXPECT_EQ(empty.length(), 0u);
  }
  int asked = 0;
  const Status stopped = other->copy(written, into, [&asked] { return ++asked > 1; });
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::cancelled);
  EXPECT_EQ(into.length(), 0u);
  ASSERT_TRUE(other->copy(written, into));
  EXPECT_EQ(other->copy(written, into).error().code, ErrorCode::invalid_argument) << "not empty";
}

// Keys without positions: a text reads the same wherever it stands.
TEST(KvAlone, ATextOfItsOwnReadsWhatIsBeforeItInTheStep) {
  std::vector<LayerSpec> layers = plain_layers();
  for (LayerSpec& layer : layers) layer.rope.inverse_frequency.clear();
  const auto cache = open(options_for("exact", layers), test::float_isa());
  ASSERT_TRUE(cache);
  for (const std::uint32_t before : {0u, 4u, 300u, 3000u}) {
    Timeline joined = std::move(*cache->start()), fresh = std::move(*cache->start());
    if (before > 0) {
      ASSERT_TRUE(advance(cache.get(), joined, before, Pass::alone, 7));
    }
    // Rows are made of their positions: the fresh timeline's must be the same ones.
    ASSERT_TRUE(before == 0 || advance(cache.get(), fresh, before, Pass::prefill, 8));
    const auto one = advance(cache.get(), joined, 700, Pass::alone, 2);
    const auto other = advance(cache.get(), fresh, 700, Pass::alone, 2);
    ASSERT_TRUE(one && other);
    EXPECT_EQ(*one, *other) << "what was before it shows, after " << before;
    if (before == 0) continue;
    const auto not_alone = [&] {
      Timeline all = std::move(*joined.fork());
      EXPECT_TRUE(all.truncate(all.length() - 50));
      return advance(cache.get(), all, 50, Pass::prefill, 2);
    };
    fresh = Timeline();
    const auto all = not_alone();
    ASSERT_TRUE(all) << all.error().message;
    // The last row of the first layer, which has no window.
    constexpr std::ptrdiff_t kWidth = 2 * 3 * 48;
    EXPECT_FALSE(std::equal(one->begin() + 699 * kWidth, one->begin() + 700 * kWidth,
                            all->begin() + 49 * kWidth));
  }
  const Timeline few = std::move(*cache->start());
  ASSERT_TRUE(advance(cache.get(), few, 2, Pass::alone));
  const auto among_sinks = advance(cache.get(), few, 10, Pass::alone);
  ASSERT_FALSE(among_sinks);
  EXPECT_EQ(among_sinks.error().code, ErrorCode::invalid_argument);
}

// The first of several texts is an ordinary one; later ones equal it where they say the same.
TEST(KvAlone, ReadsAsIfTheTimelineBeganThere) {
  std::vector<LayerSpec> layers = {plain_layer(1, 2, 32, 32)};
  layers[0].rope.inverse_frequency.clear();
  const auto cache = open(options_for("exact", layers), test::float_isa());
  const Timeline timeline = std::move(*cache->start());
  const auto write = [&](std::uint32_t rows) {
    std::vector<Token> at;
    for (std::uint32_t r = 0; r < rows; ++r) at.push_back({timeline.id(), timeline.length() + r});
    std::vector<float> keys(rows * 32), values(rows * 32), queries(rows * 64), out(rows * 64);
    for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = std::sin(0.37f * float(i));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::cos(0.11f * float(i));
    for (std::size_t i = 0; i < queries.size(); ++i) queries[i] = std::sin(0.23f * float(i));
    EXPECT_TRUE(cache->begin(at, Pass::alone));
    EXPECT_TRUE(cache->append(LayerId{0}, {keys.data(), rows, 32}, {values.data(), rows, 32}));
    EXPECT_TRUE(cache->attend(LayerId{0}, {queries.data(), rows, 64}, {out.data(), rows, 64}));
    EXPECT_TRUE(cache->commit());
    return out;
  };
  const std::vector<float> first = write(900);
  for (int again = 0; again < 3; ++again) {
    const std::vector<float> later = write(900);
    double most = 0;
    for (std::size_t i = 0; i < first.size(); ++i)
      most = std::max(most, std::abs(double{first[i]} - later[i]));
    EXPECT_LT(most, 1e-5);  // other folds, and nothing else
  }
}

}  // namespace
}  // namespace thermocline
