// What generate and chat share.
#include "tools/thermocline/generation.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <vector>

#include "tests/support/temporary_folder.h"
#include "tools/thermocline/session_run.h"

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

// Whatever is saved while a text is written, it goes on from there as if it had never stopped.
TEST(GenerateText, IsSavedWhileItIsWritten) {
  const test::TemporaryFolder folder("writing");
  const auto engine = Engine::open(
      {.model_path = std::string(THERMOCLINE_SOURCE_DIR) + "/tests/golden/tiny/llama_mixed.gguf",
       .threads = 1});
  ASSERT_TRUE(engine) << engine.error().message;
  CacheOptions options{.max_positions = 250};
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.method_overrides = {"steady.recent=16", "steady.seal=64"};  // several seals
  options.session.path = folder.path() + "/s.tls";
  options.session.text_bytes = 4096;
  constexpr std::uint32_t kRead = 30, kWritten = 160;
  options.course = Course{{}, {kRead}};
  GenerationOptions writing;
  writing.sampling.temperature = 0.8f;
  writing.sampling.seed = 3;
  writing.context = options.max_positions;
  writing.length = kWritten;
  writing.ignore_end = true;
  writing.show = [](std::string_view) -> Status { return {}; };

  std::vector<std::string> saves;
  WrittenText text;
  Generation whole;
  {
    const auto cache = (*engine)->open_cache(options);
    ASSERT_TRUE(cache) << cache.error().message;
    Timeline timeline = std::move(*(*cache)->start());
    for (std::uint32_t i = 0; i < kRead; ++i) text.tokens.push_back(static_cast<int>(3 + i * 7));
    text.sampled_from = kRead;
    const auto keep = [&](const WrittenText& so_far) -> Status {
      TL_TRY(save_session(**cache, timeline, so_far, 3, ""));
      saves.push_back(options.session.path + "." + std::to_string(saves.size()));
      std::filesystem::copy_file(options.session.path, saves.back());
      return {};
    };
    writing.while_writing = keep;
    writing.while_writing_every = std::chrono::hours(1);
    writing.length = 5;
    const Status begun = generate_text(**engine, **cache, timeline, writing, &text, &whole);
    ASSERT_TRUE(begun) << begun.error().message;
    EXPECT_TRUE(saves.empty()) << "it is not due yet";
    writing.while_writing_every = std::chrono::milliseconds(0);
    writing.length = kWritten;
    const Status written = generate_text(**engine, **cache, timeline, writing, &text, &whole);
    ASSERT_TRUE(written) << written.error().message;
  }
  ASSERT_EQ(saves.size(), kWritten - 5 - 1) << "after every step, which the last token has none of";
  writing.while_writing = nullptr;
  for (std::size_t i = 0; i < saves.size(); i += 13) {
    SCOPED_TRACE(i);
    options.session.path = saves[i];
    options.course.reset();
    const auto cache = (*engine)->open_cache(options);
    ASSERT_TRUE(cache) << cache.error().message;
    ASSERT_NE((*cache)->saved(), nullptr);
    WrittenText resumed;
    Reuse reuse;
    auto timeline = begin_session(**engine, **cache, &resumed, &reuse);
    ASSERT_TRUE(timeline) << timeline.error().message;
    const std::size_t held = resumed.tokens.size();
    ASSERT_LT(held, text.tokens.size());
    writing.length = static_cast<int>(text.tokens.size() - held);
    Generation rest;
    const Status on = generate_text(**engine, **cache, *timeline, writing, &resumed, &rest);
    ASSERT_TRUE(on) << on.error().message;
    EXPECT_EQ(resumed.tokens, text.tokens);
  }
}

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
