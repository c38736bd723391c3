// What generate and chat share.
#include "tools/thermocline/generation.h"

#include <gtest/gtest.h>

#include <vector>

namespace thermocline {
namespace {

// A cache of one layer whose disk holds `positions` and no more, and a timeline that fills it with
// one prefill: what is left of its segment has no room beside it.
struct FullDisk {
  static constexpr std::uint32_t kPositions = 4000;

  FullDisk() {
    CacheOptions options;
    LayerSpec layer;
    layer.q_heads = layer.kv_heads = 1;
    layer.key_dim = layer.value_dim = 32;
    options.layers = {layer};
    options.max_positions = kPositions;
    options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
    options.tiers.directory = ::testing::TempDir() + "thermocline-generation";
    options.tiers.disk_bytes = kPositions * 2 * 32 * 2;
    auto opened = KvCache::create(options, 1, "auto");
    EXPECT_TRUE(opened) << opened.error().message;
    cache = std::move(*opened);
    timeline = std::move(*cache->start());
    EXPECT_TRUE(read_on(kPositions));
  }
  Status read_on(std::uint32_t rows) {
    std::vector<Token> at;
    for (std::uint32_t r = 0; r < rows; ++r) at.push_back({timeline.id(), timeline.length() + r});
    const std::vector<float> in(rows * 32, 0.5f);
    std::vector<float> out(rows * 32);
    TL_TRY(cache->begin(at, Pass::prefill));
    TL_TRY(cache->append(LayerId{0}, {in.data(), rows, 32}, {in.data(), rows, 32}));
    TL_TRY(cache->attend(LayerId{0}, {in.data(), rows, 32}, {out.data(), rows, 32}));
    return cache->commit();
  }

  std::unique_ptr<KvCache> cache;
  Timeline timeline;
};

TEST(KeepOrStartOver, KeepsWhatCanBeKept) {
  FullDisk full;
  const auto kept = keep_or_start_over(*full.cache, &full.timeline, 3999);
  ASSERT_TRUE(kept) << kept.error().message;
  EXPECT_EQ(*kept, 3999u);
  EXPECT_EQ(full.timeline.length(), 3999u);
}

TEST(KeepOrStartOver, StartsOverWhereACutHasNoRoom) {
  FullDisk full;
  const Status cut = full.timeline.truncate(3000);
  ASSERT_FALSE(cut);
  ASSERT_EQ(cut.error().code, ErrorCode::exhausted);
  const auto kept = keep_or_start_over(*full.cache, &full.timeline, 3000);
  ASSERT_TRUE(kept) << kept.error().message;
  EXPECT_EQ(*kept, 0u);
  EXPECT_EQ(full.timeline.length(), 0u);
  const Status done = full.read_on(FullDisk::kPositions);
  EXPECT_TRUE(done) << done.error().message;
}

TEST(KeepOrStartOver, OtherErrorsStay) {
  FullDisk full;
  const auto beyond = keep_or_start_over(*full.cache, &full.timeline, 4001);
  ASSERT_FALSE(beyond);
  EXPECT_EQ(beyond.error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(full.timeline.length(), 4000u);
}

}  // namespace
}  // namespace thermocline
