// What a cache holds at most is what was planned: never more, and hardly less when its texts are as
// long as it was planned for.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "runtime/kv_cache.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/written_rows.h"
#include "tiers/block.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

struct MethodUnderTest {
  const char* name;
  std::uint32_t recent, seal;  // of its file, or as overridden
  std::vector<std::string> overrides = {};
  std::uint32_t cell = 0;  // rows that short segments are joined in; 0: they are not
};
const MethodUnderTest kMethods[] = {{"exact", 32, 512},
                                    {"sketch", 16, 64, {}, 1024},
                                    {"streaming", 2000, 512},
                                    {"xkv", 32, 1024, {"keys.layers=2", "steady.seal=1024"}}};
constexpr std::uint32_t kSink = 4, kDecoded = 3, kLayers = 4;

using Case = std::tuple<int, std::string, std::uint32_t, std::uint32_t>;

std::map<std::string, std::uint64_t> by_purpose(const MemoryPlan& plan) {
  std::map<std::string, std::uint64_t> bytes;
  for (const MemoryLine& line : plan.lines)
    bytes[line.tier + ", " + line.purpose] += line.peak_bytes;
  return bytes;
}

class PlanPeak : public ::testing::TestWithParam<Case> {
 protected:
  // Where the tail is as long as it gets, after about so many positions.
  static std::uint32_t longest_tail(const MethodUnderTest& method, std::uint32_t about) {
    const std::uint32_t first = kSink + method.recent + method.seal - 1;
    return first + (about > first ? (about - first) / method.seal * method.seal : 0);
  }

  CacheOptions options(const MethodUnderTest& method, std::uint32_t positions) const {
    const auto& home = std::get<1>(GetParam());
    CacheOptions made;
    // Of one size, as in a model: what the largest takes while it is sealed is then beside all
    // rows.
    made.layers.assign(kLayers, plain_layer(2, 1, 64, 64));
    made.method = method.name;
    made.method_overrides = method.overrides;
    made.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
    made.max_positions = positions;
    made.max_timelines = std::get<2>(GetParam());
    if (home == "disk") {
      made.tiers.disk_bytes = std::uint64_t{1} << 30;
      made.tiers.directory = root_ + "/scratch";
    }
    if (home == "session") {
      made.session.path = root_ + "/s.tls";
      made.session.text_bytes = 2048;
    }
    return made;
  }

  // Reads, decodes to where the tail is longest, and saves after reading and each step: a save lies
  // beside the one before. Of more steps the last kDecoded before the `unsaved` ones at the end.
  static Status write_text(KvCache* cache, const Timeline& timeline, std::uint32_t length,
                           bool saves, unsigned text, std::uint32_t decoded = kDecoded,
                           std::uint32_t unsaved = 0) {
    TL_TRY(advance(cache, timeline, length - decoded - timeline.length(), Pass::prefill, text));
    if (saves) TL_TRY(cache->save(timeline, session_text(length - decoded)));
    while (timeline.length() < length) {
      TL_TRY(advance(cache, timeline, 1, Pass::decode, text));
      const std::uint32_t left = length - timeline.length();
      if (saves && left >= unsaved && left < unsaved + kDecoded)
        TL_TRY(cache->save(timeline, session_text(timeline.length())));
    }
    return {};
  }

  // That what `write` does to a cache takes is what was planned, in each line and in all.
  void expect_line_by_line(const CacheOptions& made, const std::function<Status(KvCache*)>& write) {
    const auto plan = KvCache::plan(made, 1);
    ASSERT_TRUE(plan) << plan.error().message;
    const auto cache = KvCache::create(made, 1, "auto");
    ASSERT_TRUE(cache) << cache.error().message;
    const Status written = write(cache->get());
    EXPECT_TRUE(written) << written.error().message;
    const MemoryPlan usage = (*cache)->usage();
    texts_.clear();
    if (!written) return;
    auto planned = by_purpose(*plan);
    for (const auto& [purpose, bytes] : by_purpose(usage)) {
      // Of a text of several cells sealing's line is what is beside all the rest: a whole cell is
      // formed before the last rows are there.
      if (purpose == "host, sealing" && made.max_positions > kSegmentRows) continue;
      EXPECT_LE(bytes, planned[purpose]) << purpose;
      // Two publications, each in whole pages.
      const std::uint64_t rounded = purpose == "disk, saved" ? 2 * kPageBytes : 0;
      EXPECT_GE(bytes + rounded, planned[purpose] * 95 / 100) << purpose;
    }
    for (const auto& [tier, bytes] : usage.peak_bytes) {
      EXPECT_LE(bytes, plan->total(tier)) << tier;
      EXPECT_GE(bytes, plan->total(tier) * 95 / 100) << tier;
    }
    if (!HasFailure()) return;
    for (const auto& [purpose, bytes] : by_purpose(usage))
      std::printf("  %-20s plan %9lu  peak %9lu\n", purpose.c_str(), planned[purpose], bytes);
  }

  const test::TemporaryFolder temporary_{"peak"};
  const std::string root_ = temporary_.path();
  std::vector<Timeline> texts_;
};

TEST_P(PlanPeak, IsWhatIsHeldAtMost) {
  const auto& [number, home, timelines, about] = GetParam();
  const MethodUnderTest& method = kMethods[number];
  const std::uint32_t most = longest_tail(method, about);
  const CacheOptions made = options(method, most);
  const auto plan = KvCache::plan(made, 1);
  ASSERT_TRUE(plan) << plan.error().message;
  for (const std::uint32_t length : {most / 3, most}) {
    SCOPED_TRACE(length);
    fs::remove(root_ + "/s.tls");
    const auto cache = KvCache::create(made, 1, "auto");
    ASSERT_TRUE(cache) << cache.error().message;
    std::vector<Timeline> texts;
    for (std::uint32_t t = 0; t < timelines; ++t) {
      texts.push_back(std::move(*(*cache)->start()));
      const Status written =
          write_text(cache->get(), texts.back(), length, !made.session.path.empty(), t + 1);
      ASSERT_TRUE(written) << written.error().message;
    }
    const MemoryPlan usage = (*cache)->usage();
    auto planned = by_purpose(*plan);
    for (const auto& [purpose, bytes] : by_purpose(usage)) {
      // Of a text of several cells sealing's line is what is beside all the rest: a whole cell is
      // formed before the last rows are there.
      if (purpose == "host, sealing" && most > kSegmentRows) continue;
      EXPECT_LE(bytes, planned[purpose]) << purpose;
    }
    for (const auto& [tier, bytes] : usage.peak_bytes) {
      const std::uint64_t total = plan->total(tier);
      if (length == most)
        std::printf("%-10s %-8s %u x %5u  %-9s  plan %9lu  peak %9lu  %.3f\n", method.name,
                    home.c_str(), timelines, length, tier.c_str(), total, bytes,
                    static_cast<double>(bytes) / static_cast<double>(total));
      EXPECT_LE(bytes, total) << tier;
      // What the last save has of segments that were joined since is a matter of steps, below.
      const bool leaves_joints = tier == "disk" && home == "session" && method.cell > 0;
      if (length == most && tier != kWorkspace && (!leaves_joints || about < method.cell)) {
        EXPECT_GE(bytes, total * 95 / 100) << tier;
      }
    }
    if (length == most && HasFailure())
      for (const auto& [purpose, bytes] : by_purpose(usage))
        std::printf("  %-20s plan %9lu  peak %9lu\n", purpose.c_str(), planned[purpose], bytes);
  }
}

// A file has most when each layer has just had its turn, and the last save has the cell in short
// segments.
class PlanPeakJoined : public PlanPeak {};
TEST_P(PlanPeakJoined, IsWhatTheFileHoldsAtMost) {
  const auto& [number, home, timelines, about] = GetParam();
  const MethodUnderTest& method = kMethods[number];
  const std::uint32_t length = kSink + method.recent + about / method.cell * method.cell + kLayers;
  const CacheOptions made = options(method, length);
  const auto plan = KvCache::plan(made, 1);
  ASSERT_TRUE(plan) << plan.error().message;
  const auto cache = KvCache::create(made, 1, "auto");
  ASSERT_TRUE(cache) << cache.error().message;
  const Timeline timeline = std::move(*(*cache)->start());
  // Short texts fill a cell and nearly a next one before the steps that join both.
  const std::uint32_t joined = length - kLayers;
  const Status written =
      write_text(cache->get(), timeline, joined - 2 * method.cell, true, 1, method.cell, kLayers);
  ASSERT_TRUE(written) << written.error().message;
  while (timeline.length() < joined - method.seal)
    ASSERT_TRUE(advance(cache->get(), timeline, method.seal, Pass::prefill, 1));
  ASSERT_TRUE((*cache)->save(timeline, session_text(timeline.length())));
  while (timeline.length() < length)
    ASSERT_TRUE(advance(cache->get(), timeline, 1, Pass::decode, 1));
  const MemoryPlan usage = (*cache)->usage();
  auto planned = by_purpose(*plan);
  for (const auto& [purpose, bytes] : by_purpose(usage))
    EXPECT_LE(bytes, planned[purpose]) << purpose;
  EXPECT_GE(usage.peak_bytes.at("disk"), plan->total("disk") * 95 / 100);
}

// Of a text whose course is known every line is what it comes to, wherever it ends.
TEST_P(PlanPeak, OfAKnownCourseIsItLineByLine) {
  const auto& [number, home, timelines, about] = GetParam();
  const std::uint32_t length = about + about / 7;
  CacheOptions made = options(kMethods[number], length);
  made.course = Course{{}, {length - kDecoded}};
  expect_line_by_line(made, [&](KvCache* cache) -> Status {
    for (std::uint32_t t = 0; t < timelines; ++t) {
      texts_.push_back(std::move(*cache->start()));
      TL_TRY(write_text(cache, texts_.back(), length, !made.session.path.empty(), t + 1));
    }
    return {};
  });
}

// What a file holds is in segments of any length: as they were read, and as they were decoded.
class PlanPeakResumed : public PlanPeak {};
TEST_P(PlanPeakResumed, IsItLineByLine) {
  const auto& [number, home, timelines, about] = GetParam();
  const std::uint32_t length = about + about / 7;
  {
    const auto cache = KvCache::create(options(kMethods[number], about), 1, "auto");
    ASSERT_TRUE(cache) << cache.error().message;
    const auto timeline = (*cache)->start();
    ASSERT_TRUE(advance(cache->get(), *timeline, about / 2, Pass::prefill, 1));
    while (timeline->length() < about / 2 + 70)
      ASSERT_TRUE(advance(cache->get(), *timeline, 1, Pass::decode, 1));
    ASSERT_TRUE(write_text(cache->get(), *timeline, about, true, 1));
  }
  CacheOptions made = options(kMethods[number], length);
  const auto held = read_session(made.session.path);
  ASSERT_TRUE(held) << held.error().message;
  EXPECT_EQ(held->held.positions, about);
  made.course = Course{held->held, {length - kDecoded}};
  expect_line_by_line(made, [&](KvCache* cache) -> Status {
    TL_TRY_ASSIGN(Timeline resumed, cache->resume());
    texts_.push_back(std::move(resumed));
    return write_text(cache, texts_.back(), length, true, 1);
  });
}

// A long text is saved while it is written: two of the longest tail may lie beside each other.
class PlanPeakWritten : public PlanPeak {};
TEST_P(PlanPeakWritten, IsItLineByLine) {
  const auto& [number, home, timelines, about] = GetParam();
  const MethodUnderTest& method = kMethods[number];
  const std::uint32_t length = longest_tail(method, about), read = length - (method.seal - 1);
  CacheOptions made = options(method, length);
  made.course = Course{{}, {read}};
  expect_line_by_line(made, [&](KvCache* cache) -> Status {
    texts_.push_back(std::move(*cache->start()));
    TL_TRY(advance(cache, texts_.back(), read, Pass::prefill, 1));
    while (texts_.back().length() < length) {
      TL_TRY(advance(cache, texts_.back(), 1, Pass::decode, 1));
      const std::uint32_t written = texts_.back().length();
      if (written + 1 >= length) TL_TRY(cache->save(texts_.back(), session_text(written)));
    }
    return {};
  });
}

std::string name_of_case(const ::testing::TestParamInfo<Case>& suite) {
  return std::string(kMethods[std::get<0>(suite.param)].name) + "_" + std::get<1>(suite.param) +
         "_" + std::to_string(std::get<2>(suite.param)) + "x" +
         std::to_string(std::get<3>(suite.param));
}

INSTANTIATE_TEST_SUITE_P(Everywhere, PlanPeak,
                         ::testing::Combine(::testing::Range(0, 4),
                                            ::testing::Values("host", "disk", "session"),
                                            ::testing::Values(1u),
                                            ::testing::Values(700u, 5000u, 10000u)),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(OfTwoTexts, PlanPeak,
                         ::testing::Combine(::testing::Range(0, 4),
                                            ::testing::Values("host", "disk", "session"),
                                            ::testing::Values(2u), ::testing::Values(700u, 5000u)),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(Sessions, PlanPeakJoined,
                         ::testing::Combine(::testing::Values(1), ::testing::Values("session"),
                                            ::testing::Values(1u), ::testing::Values(14000u)),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(Sessions, PlanPeakResumed,
                         ::testing::Combine(::testing::Range(0, 4), ::testing::Values("session"),
                                            ::testing::Values(1u),
                                            ::testing::Values(700u, 5000u, 10000u)),
                         name_of_case);

INSTANTIATE_TEST_SUITE_P(WithSaves, PlanPeakWritten,
                         ::testing::Combine(::testing::Range(0, 4), ::testing::Values("session"),
                                            ::testing::Values(1u), ::testing::Values(700u)),
                         name_of_case);

}  // namespace
}  // namespace thermocline
