// What happens where there is not enough: of memory, of --kv-disk, of the filesystem. And that what
// was planned is enough.
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "runtime/kv_cache.h"
#include "tests/support/dense_oracle.h"
#include "tests/support/float_table.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

LayerSpec layer(std::uint32_t q_heads, std::uint32_t kv_heads, std::uint32_t key_dim,
                std::uint32_t value_dim, std::uint32_t window = 0) {
  LayerSpec spec;
  spec.q_heads = q_heads;
  spec.kv_heads = kv_heads;
  spec.key_dim = key_dim;
  spec.value_dim = value_dim;
  spec.window = window;
  spec.scale = 0.2f;
  return spec;
}

CacheOptions options_for(std::vector<LayerSpec> layers, std::uint32_t positions,
                         std::uint64_t disk_bytes) {
  CacheOptions options;
  options.layers = std::move(layers);
  options.max_positions = positions;
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.tiers.directory = ::testing::TempDir() + "thermocline-space";
  options.tiers.disk_bytes = disk_bytes;
  return options;
}

std::uint64_t planned(const CacheOptions& options, const std::string& tier) {
  const auto plan = KvCache::plan(options);
  EXPECT_TRUE(plan) << (plan ? "" : plan.error().message);
  std::uint64_t bytes = 0;
  for (const MemoryLine& line : plan->lines)
    if (line.tier == tier && line.purpose != "row_cache") bytes += line.bytes;
  return bytes;
}

std::uint64_t row_cache_of(const CacheOptions& options) {
  const auto plan = KvCache::plan(options);
  EXPECT_TRUE(plan) << (plan ? "" : plan.error().message);
  return plan->total("host") - planned(options, "host");
}

// A timeline and its layers' oracles, which take rows only once they are committed.
class Text {
 public:
  explicit Text(KvCache* cache, unsigned seed = 1) : cache_(cache), random_(seed) {
    timeline = std::move(*cache->start());
    for (const LayerSpec& spec : cache->layers()) oracles_.emplace_back(spec);
  }
  // Appends, attends, commits; rolls back on an error.
  Status advance(std::uint32_t rows) {
    std::vector<Token> at;
    for (std::uint32_t r = 0; r < rows; ++r) at.push_back({timeline.id(), timeline.length() + r});
    TL_TRY(cache_->begin(at, rows > kMaxStepRows ? Pass::prefill : Pass::decode));
    std::vector<std::vector<float>> keys, values;
    for (std::uint32_t l = 0; l < cache_->layers().size(); ++l) {
      const LayerSpec& spec = cache_->layers()[l];
      const std::size_t k = spec.kv_heads * spec.key_dim, v = spec.kv_heads * spec.value_dim;
      const std::size_t q = spec.q_heads * spec.key_dim, o = spec.q_heads * spec.value_dim;
      keys.push_back(random_rows(random_, rows * k));
      values.push_back(random_rows(random_, rows * v));
      const auto query = random_rows(random_, rows * q);
      std::vector<float> out(rows * o);
      Status done =
          cache_->append(LayerId{l}, {keys[l].data(), rows, k}, {values[l].data(), rows, v});
      if (done) done = cache_->attend(LayerId{l}, {query.data(), rows, q}, {out.data(), rows, o});
      if (!done) {
        cache_->rollback();
        return done;
      }
      if (check) {
        DenseOracle oracle = oracles_[l];
        for (std::uint32_t r = 0; r < rows; ++r)
          oracle.append(keys[l].data() + r * k, values[l].data() + r * v);
        const auto right = oracle.attend(query.data() + (rows - 1) * q, at.back().position);
        for (std::size_t i = 0; i < o; ++i)
          EXPECT_NEAR(out[(rows - 1) * o + i], right[i], 4e-3) << "layer " << l;
      }
    }
    TL_TRY(cache_->commit());
    for (std::uint32_t l = 0; l < keys.size(); ++l)
      for (std::uint32_t r = 0; r < rows; ++r)
        oracles_[l].append(keys[l].data() + r * keys[l].size() / rows,
                           values[l].data() + r * values[l].size() / rows);
    return {};
  }
  Status truncate(std::uint32_t length) {
    TL_TRY(timeline.truncate(length));
    for (DenseOracle& oracle : oracles_) oracle.truncate(length);
    return {};
  }

  Timeline timeline;
  bool check = true;

 private:
  KvCache* cache_;
  std::mt19937 random_;
  std::vector<DenseOracle> oracles_;
};

std::string message(const Status& status) { return status ? "" : status.error().message; }

TEST(KvSpace, ADiskThatIsTooSmallIsRefusedAtTheStart) {
  auto options = options_for({layer(4, 2, 32, 32)}, 20000, 1 * kMiB);
  const auto refused = KvCache::create(options, 1, test::float_isa());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::exhausted);
  for (const char* part : {"20000 positions", "4.75 MiB", "1 MiB", "--kv-disk", "-c"})
    EXPECT_NE(refused.error().message.find(part), std::string::npos) << refused.error().message;
  EXPECT_FALSE(KvCache::plan(options));
  options.tiers.disk_bytes = 38 * 512 * 256;  // all but sinks and tail
  EXPECT_TRUE(KvCache::create(options, 1, test::float_isa()));
  --options.tiers.disk_bytes;
  EXPECT_FALSE(KvCache::create(options, 1, test::float_isa()));
}

TEST(KvSpace, UnaskedADiskCostsNoMoreMemoryThanItSpares) {
  for (const char* method : {"exact", "sketch", "ladder4"})
    for (const std::uint32_t positions : {3000u, 20000u, 200000u}) {
      SCOPED_TRACE(std::string(method) + ", " + std::to_string(positions) + " positions");
      auto options = options_for({layer(8, 4, 64, 64), layer(8, 4, 64, 64, 512)}, positions, 0);
      options.method = method;
      options.tiers.host_bytes = kAutoBytes;
      const std::uint64_t in_memory = planned(options, "host");
      options.tiers.disk_bytes = 4096 * kMiB;
      const std::uint64_t least = planned(options, "host"), cached = row_cache_of(options);
      EXPECT_LE(least + cached, std::max(in_memory, least));
      if (positions > 100000) {
        EXPECT_GT(cached, planned(options, "disk") / 2);
      }
    }
}

TEST(KvSpace, NoMoreRowsAreCachedThanThereAre) {
  auto options = options_for({layer(8, 4, 64, 64)}, 20000, 4096 * kMiB);
  options.max_timelines = 2;
  options.tiers.host_bytes = 4096 * kMiB;
  // Sinks and the tail are never on the disk: 4 and at least 32 rows.
  const std::uint64_t rows = 2 * 4 * ((20000 - 4 - 32) / 512 * 512), row_bytes = 256;
  // A slot's bookkeeping takes some bytes, and finding each row of whole blocks four.
  const std::uint64_t table_bytes = 2 * 4 * 20032 * 4 + rows * 24;
  EXPECT_GT(row_cache_of(options), rows * row_bytes);
  EXPECT_LE(row_cache_of(options), rows * row_bytes + table_bytes);
}

// To the last position of every timeline with not a byte more than was planned.
TEST(KvSpace, WhatWasPlannedIsEnough) {
  for (const char* method : {"exact", "sketch", "ladder2", "streaming"})
    for (const bool disk : {false, true})
      for (const int seal : {64, 100, 512}) {
        SCOPED_TRACE(std::string(method) + (disk ? ", disk" : ", host") + ", seal " +
                     std::to_string(seal));
        // Rows of 96 bytes: a block of them ends in the middle of a page.
        auto options = options_for({layer(2, 1, 16, 32), layer(2, 2, 32, 32, 64)}, 1500,
                                   disk ? 1024 * kMiB : 0);
        options.max_timelines = 2;
        options.method = method;
        options.method_overrides = {"steady.seal=" + std::to_string(seal), "steady.recent=1",
                                    "steady.sink=0"};
        options.tiers.host_bytes = planned(options, "host");
        if (disk) options.tiers.disk_bytes = std::max<std::uint64_t>(1, planned(options, "disk"));
        auto cache = KvCache::create(options, 1, test::float_isa());
        ASSERT_TRUE(cache) << cache.error().message;
        Text texts[2] = {Text(cache->get(), 1), Text(cache->get(), 2)};
        for (Text& text : texts) text.check = false;
        while (texts[1].timeline.length() < 1500)
          for (Text& text : texts) {
            const std::uint32_t left = 1500 - text.timeline.length();
            const Status done = text.advance(std::min(left, &text == texts ? 500u : 13u));
            if (left > 0) {
              ASSERT_TRUE(done) << message(done);
            }
          }
        const MemoryPlan usage = (*cache)->usage();
        EXPECT_LE(usage.total("host"), options.tiers.host_bytes);
        EXPECT_LE(usage.total("disk"), options.tiers.disk_bytes);
        EXPECT_EQ(usage.total("disk") > 0, disk && std::strcmp(method, "streaming") != 0);
      }
}

std::uint64_t bytes_for(const MemoryPlan& plan, const std::string& purpose) {
  std::uint64_t bytes = 0;
  for (const MemoryLine& line : plan.lines)
    if (line.purpose == purpose) bytes += line.peak_bytes;
  return bytes;
}

// A prefill of everything that fits takes what was planned for tails and for sealing, to the byte.
TEST(KvSpace, APlanIsWhatIsTaken) {
  for (const char* method : {"exact", "sketch", "ladder2", "streaming"})
    for (const bool disk : {false, true}) {
      SCOPED_TRACE(std::string(method) + (disk ? ", disk" : ", host"));
      auto options =
          options_for({layer(6, 2, 32, 16), layer(6, 2, 32, 16)}, 3000, disk ? 64 * kMiB : 0);
      options.max_timelines = 2;
      options.method = method;
      const auto plan = KvCache::plan(options, 1);
      ASSERT_TRUE(plan);
      auto cache = KvCache::create(options, 1, test::float_isa());
      ASSERT_TRUE(cache) << cache.error().message;
      Text text(cache->get());
      text.check = false;
      const auto fork = text.timeline.fork();
      ASSERT_TRUE(text.advance(3000));
      for (const char* purpose : {"tail", "sealing", "staging", "row_cache", "attention"})
        EXPECT_EQ(bytes_for((*cache)->usage(), purpose), bytes_for(*plan, purpose)) << purpose;
    }
}

TEST(KvSpace, TheSpanOfTheLargestLayerIsPlanned) {
  auto options = options_for({layer(1, 1, 16, 16, 8), layer(1, 1, 16, 16)}, 80000, 64 * kMiB);
  options.method_overrides = {"steady.recent=20000"};
  options.tiers.host_bytes = planned(options, "host");
  auto cache = KvCache::create(options, 1, test::float_isa());
  ASSERT_TRUE(cache) << cache.error().message;
  Text text(cache->get());
  text.check = false;
  for (int i = 0; i < 2; ++i) {
    const Status done = text.advance(10100);
    ASSERT_TRUE(done) << message(done);
  }
  // A full span on top of a full tail, in the layer that has one; only its room is of interest.
  std::vector<Token> at;
  for (std::uint32_t r = 0; r < 32768; ++r) at.push_back({text.timeline.id(), 20200 + r});
  ASSERT_TRUE((*cache)->begin(at, Pass::prefill));
  const std::vector<float> rows(at.size() * 16);
  const MatView<const float> view(rows.data(), at.size(), 16);
  const Status appended = (*cache)->append(LayerId{1}, view, view);
  EXPECT_TRUE(appended) << message(appended);
  (*cache)->rollback();
}

TEST(KvSpace, AStepMayBeGivenUpForWantOfDiskAndTheTimelineGoesOn) {
  const std::string directory = ::testing::TempDir() + "thermocline-tiny";
  fs::create_directory(directory);
  if (::mount("tmpfs", directory.c_str(), "tmpfs", 0, "size=64m,mode=0700") != 0)
    GTEST_SKIP() << "mounting a tmpfs: " << std::strerror(errno);
  {
    auto options = options_for({layer(4, 2, 32, 32), layer(2, 1, 16, 16)}, 20000, 64 * kMiB);
    options.tiers.directory = directory;
    auto cache = KvCache::create(options, 2, test::float_isa());
    ASSERT_TRUE(cache) << cache.error().message;
    // The plan had room when the cache was opened, and somebody else takes it.
    ASSERT_EQ(::mount("tmpfs", directory.c_str(), "tmpfs", MS_REMOUNT, "size=1m,mode=0700"), 0);
    ASSERT_FALSE(KvCache::create(options, 2, test::float_isa())) << "the plan has no room now";
    Text text(cache->get());
    ASSERT_TRUE(text.advance(1000));
    const std::uint64_t held = (*cache)->usage().total("disk");
    ASSERT_GT(held, 0u);
    for (int attempt = 0; attempt < 3; ++attempt) {
      const Status full = text.advance(8000);  // 2.5 MB
      ASSERT_FALSE(full);
      EXPECT_EQ(full.error().code, ErrorCode::exhausted);
      for (const char* part : {"more is needed", "--kv-dir", directory.c_str(), "free", "ENOSPC"})
        EXPECT_NE(full.error().message.find(part), std::string::npos) << full.error().message;
      EXPECT_EQ(text.timeline.length(), 1000u);
      EXPECT_EQ((*cache)->usage().total("disk"), held);
      ASSERT_TRUE(text.advance(1) && text.truncate(1000));
    }
    // Until a decode's sealing finds no room, and from a shorter past on.
    Status done{};
    while ((done = text.advance(16))) text.check = text.timeline.length() % 512 < 16;
    text.check = true;
    EXPECT_EQ(done.error().code, ErrorCode::exhausted) << message(done);
    const std::uint32_t length = text.timeline.length();
    EXPECT_GT(length, 2500u);
    EXPECT_FALSE(text.advance(16));
    EXPECT_EQ(text.timeline.length(), length);
    // A run ends at 1028: nothing has to be formed anew there.
    const Status cut = text.truncate(1028);
    ASSERT_TRUE(cut) << message(cut);
    for (int i = 0; i < 60; ++i) {
      done = text.advance(16);
      ASSERT_TRUE(done) << message(done);
    }
  }
  ::umount2(directory.c_str(), MNT_DETACH);
}

// A cut inside a segment forms what is left of it anew before the old one goes, which may take more
// than there is: then the timeline is as it was, and can be cut where segments begin.
TEST(KvSpace, AFullDiskRefusesACutOrMakesIt) {
  auto options = options_for({layer(2, 1, 32, 32)}, 4000, 64 * kMiB);
  options.method_overrides = {"steady.seal=64"};
  options.tiers.disk_bytes = planned(options, "disk");
  int made = 0;
  for (const std::uint32_t length : {3999u, 3900u, 3000u, 2000u, 500u, 3u, 0u}) {
    SCOPED_TRACE(length);
    auto cache = KvCache::create(options, 1, test::float_isa());
    ASSERT_TRUE(cache) << cache.error().message;
    Text text(cache->get());
    ASSERT_TRUE(text.advance(4000));
    const Status cut = text.truncate(length);
    if (!cut) {
      EXPECT_EQ(cut.error().code, ErrorCode::exhausted) << message(cut);
      EXPECT_NE(message(cut).find("--kv-disk"), std::string::npos) << message(cut);
      EXPECT_EQ(text.timeline.length(), 4000u);
      ASSERT_TRUE(text.truncate(0));
    }
    made += cut.has_value();
    const Status done = text.advance(4000 - text.timeline.length());
    ASSERT_TRUE(done) << message(done);
  }
  EXPECT_GE(made, 3);
}

TEST(KvSpace, WhereMemoryIsRefusedNothingStaysReserved) {
  // A window of 2 GiB of raw rows, more than the process may have by the time it is asked for.
  auto options = options_for({layer(1, 1, 16, 16), layer(8, 8, 256, 256, 1u << 31)}, 1u << 18, 0);
  options.tiers.host_bytes = std::uint64_t{1} << 55;
  const auto cache = KvCache::create(options, 1, "auto");
  if (!cache) GTEST_SKIP() << "this machine has not enough for the plan: " << cache.error().message;
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_AS, &before), 0);
  std::uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const rlimit limit{.rlim_cur = pages * 4096 + (1u << 30), .rlim_max = before.rlim_max};
  for (int tries = 0; tries < 2; ++tries) {
    ASSERT_EQ(::setrlimit(RLIMIT_AS, &limit), 0);
    const auto timeline = (*cache)->start();
    ASSERT_EQ(::setrlimit(RLIMIT_AS, &before), 0);
    ASSERT_FALSE(timeline);
    EXPECT_NE(timeline.error().message.find("out of memory"), std::string::npos)
        << timeline.error().message;
    EXPECT_EQ((*cache)->usage().total("host"), 0u);
  }
}

TEST(KvSpace, ATimelineMayStartWhileAStepIsInProgress) {
  const auto options = options_for({layer(2, 1, 32, 32)}, 2000, 0);
  auto cache = KvCache::create(options, 1, test::float_isa());
  ASSERT_TRUE(cache);
  Text text(cache->get());
  const Token at{text.timeline.id(), 0};
  ASSERT_TRUE((*cache)->begin({&at, 1}, Pass::decode));
  std::vector<Timeline> others;
  for (int i = 0; i < 40; ++i) {
    auto other = i % 2 ? text.timeline.fork() : (*cache)->start();
    if (!other) break;  // there is room for as many as were planned, and for what else is free
    others.push_back(std::move(*other));
  }
  EXPECT_GE(others.size(), 1u);
  const std::vector<float> row(32), query(64);
  std::vector<float> out(64);
  ASSERT_TRUE((*cache)->append(LayerId{0}, {row.data(), 1, 32}, {row.data(), 1, 32}));
  ASSERT_TRUE((*cache)->attend(LayerId{0}, {query.data(), 1, 64}, {out.data(), 1, 64}));
  ASSERT_TRUE((*cache)->commit());
  EXPECT_EQ(text.timeline.length(), 1u);
  for (const Timeline& other : others) EXPECT_EQ(other.length(), 0u);
}

}  // namespace
}  // namespace thermocline
