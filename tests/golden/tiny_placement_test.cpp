// Every codec under every tiny model, with rows in memory, on the disk and on a device: the same
// tokens and logits wherever they are, and bytes moved from there.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/thermocline.h"
#include "tests/support/reader.h"
#include "tests/support/temporary_folder.h"

namespace thermocline {
namespace {

constexpr std::size_t kPrompt = 230, kLastPart = 40, kGenerated = 12;
constexpr std::uint32_t kPositions = kPrompt + kGenerated;

struct Placement {
  const char* name;
  bool disk = false, device = false;
  const char* backend = "auto";
};
constexpr Placement kPlacements[] = {{"in memory"},
                                     {"on the disk, by uring", true, false, "uring"},
                                     {"on the disk, by threads", true, false, "threads"},
                                     {"on the device", false, true}};

struct Answer {
  std::vector<int> tokens;
  std::vector<float> logits;  // of every step
  bool operator==(const Answer&) const = default;
};

std::vector<int> text() {
  std::vector<int> tokens(kPrompt);
  for (std::size_t i = 0; i < kPrompt; ++i)
    tokens[i] = static_cast<int>((i * 7919 + i * i * 31) % 250);
  return tokens;
}

class TinyPlacement : public testing::TestWithParam<std::string> {
 protected:
  CacheOptions options(const std::string& method, const std::string& codec,
                       const Placement& placement) const {
    CacheOptions made;
    made.method = method;
    made.method_directory = THERMOCLINE_SOURCE_DIR "/configs/methods";
    made.method_overrides = {"steady.sink=4", "steady.recent=16", "steady.seal=64",
                             "keys.compress=" + codec};
    // Some bytes of a row have to be at home.
    if (codec.starts_with("lowrank"))
      made.method_overrides.push_back("values.compress=q4_0");
    else
      made.method_overrides.push_back("values.compress=" + codec);
    if (method == "sketch") made.method_overrides.push_back("select.share=0.3");
    made.max_positions = kPositions;
    made.tiers.host_bytes = kAutoBytes;
    if (placement.disk) {
      made.tiers.disk_bytes = std::uint64_t{64} << 20;
      made.tiers.host_bytes = std::uint64_t{64} << 20;
      made.tiers.directory = folder_.path();
      made.tiers.io_backend = placement.backend;
      made.method_overrides.push_back("place.rows=lowest");
    }
    if (placement.device) {
      made.tiers.device = "host";
      made.tiers.device_bytes = std::uint64_t{64} << 20;
    }
    return made;
  }

  Result<Answer> generate(Engine& engine, CacheOptions with, const Placement& placement) const {
    if (placement.disk) {  // and no memory for copies of rows, which would be read instead
      TL_TRY_ASSIGN(const MemoryPlan plan, engine.plan(with));
      with.tiers.host_bytes = 0;
      for (const MemoryLine& line : plan.lines)
        if (line.tier == "host" && line.purpose != "row_cache") with.tiers.host_bytes += line.bytes;
    }
    TL_TRY_ASSIGN(const auto cache, engine.open_cache(with));
    auto timeline = cache->start();
    if (!timeline) return tl::unexpected<Error>(timeline.error());
    const std::vector<int> prompt = text();
    Answer answer;
    std::vector<float> logits(engine.model().vocabulary);
    const std::span<const int> all(prompt);
    TL_TRY(engine.prefill(*timeline, all.first(kPrompt - kLastPart), {}, {}));
    TL_TRY(engine.prefill(*timeline, all.last(kLastPart), logits, {}));
    for (std::size_t i = 0; i < kGenerated; ++i) {
      answer.logits.insert(answer.logits.end(), logits.begin(), logits.end());
      answer.tokens.push_back(static_cast<int>(test::best_of(logits)));
      const Feed feed{&*timeline, answer.tokens.back()};
      TL_TRY(engine.step({&feed, 1}, {logits.data(), 1, logits.size()}));
    }
    const CacheReport report = cache->report();
    EXPECT_GT(report.rows_sealed, 0u);
    EXPECT_EQ(report.disk_bytes_written > 0, placement.disk);
    EXPECT_EQ(report.disk_bytes_read > 0, placement.disk);
    EXPECT_EQ(report.row_cache_hits, 0u);
    EXPECT_EQ(report.device_bytes_read > 0, placement.device);
    return answer;
  }

 private:
  test::TemporaryFolder folder_{"tiny-placement"};
};

TEST_P(TinyPlacement, OfEveryCodecChangesNoBit) {
  const auto engine = Engine::open(
      {.model_path = THERMOCLINE_SOURCE_DIR "/tests/golden/tiny/" + GetParam(), .threads = 2});
  ASSERT_TRUE(engine) << engine.error().message;
  std::optional<Answer> raw;
  std::size_t worked = 0;
  for (const char* method : {"exact", "sketch"})
    for (const CodecLine& line : list_codecs()) {
      const std::string& codec = line.name;
      std::optional<Answer> first;
      for (const Placement& placement : kPlacements) {
        SCOPED_TRACE(std::string(method) + ", " + codec + ", " + placement.name);
        const auto answer = generate(**engine, options(method, codec, placement), placement);
        if (!answer) {
          ADD_FAILURE() << answer.error().message;
          continue;
        }
        EXPECT_TRUE(std::ranges::all_of(answer->logits, [](float x) { return std::isfinite(x); }));
        if (!first) first = *answer;
        EXPECT_TRUE(*answer == *first);
        ++worked;
      }
      if (!raw) raw = first;
      // What loses something is seen to have been there.
      if (codec != "raw") {
        EXPECT_NE(first->logits, raw->logits) << method << ", " << codec;
      }
    }
  EXPECT_EQ(worked, 2 * list_codecs().size() * std::size(kPlacements));
}

std::vector<std::string> tiny_models() {
  std::vector<std::string> names;
  for (const auto& entry :
       std::filesystem::directory_iterator(THERMOCLINE_SOURCE_DIR "/tests/golden/tiny"))
    if (entry.path().extension() == ".gguf") names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

INSTANTIATE_TEST_SUITE_P(Models, TinyPlacement, testing::ValuesIn(tiny_models()),
                         [](const auto& model) {
                           return std::filesystem::path(model.param).stem().string();
                         });

}  // namespace
}  // namespace thermocline
