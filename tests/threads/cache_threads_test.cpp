// The whole cache under ThreadSanitizer, with more threads than it may be given processors: every
// way that a step takes over a disk, and what one thread gives, to the bit. A report of the
// sanitizer's fails the test that it came from.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/cpu/table.h"
#include "runtime/method.h"
#include "tests/faults/cache_walk.h"
#include "tests/faults/kernel_faults.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/written_rows.h"

namespace thermocline {
namespace {

constexpr int kThreads = 4;
constexpr std::uint64_t kCachedBytes = 60'000;  // a part of the rows
constexpr int kShortWalk = 7;                   // prefills, decode steps, a fork
// The one whose reads the sanitizer sees.
constexpr const char* kIsa = "avx2";

class CacheThreads : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto table = choose_cpu_table(kIsa); !table) GTEST_SKIP() << table.error().message;
  }
};

class CacheThreadsOver : public CacheThreads, public ::testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    CacheThreads::SetUp();
    const auto probe = KvCache::plan(cache_options(GetParam(), "exact", 0));
    if (!probe) GTEST_SKIP() << probe.error().message;
  }
};

// Lists are chosen while earlier ones are read, pages are found damaged and read again, rows are
// sealed while others are on their way to the disk.
TEST_P(CacheThreadsOver, StepsOverADiskInTroubleAreThoseOfOneThread) {
  for (const char* method : {"exact", "sketch", "ladder2"})
    for (const std::uint64_t cached : {std::uint64_t{0}, kCachedBytes}) {
      SCOPED_TRACE(std::string(method) + ", " + std::to_string(cached) + " bytes cached");
      const CacheOptions options = cache_options(GetParam(), method, cached);
      std::vector<std::vector<float>> expected(kSteps);
      Walk alone(options, 1, kIsa), together(options, kThreads, kIsa);
      for (int s = 0; s < kSteps; ++s)
        ASSERT_TRUE(alone.step(s, &expected[static_cast<std::size_t>(s)]));
      KernelFaultPlan plan;
      plan.with(KernelFault::partial, 0.08).with(KernelFault::flipped, 0.05);
      plan.with(KernelFault::io_error, 0.05).with(KernelFault::late, 0.01);
      const KernelFaults faults(plan);
      for (int s = 0; s < kSteps; ++s) {
        std::vector<float> outputs;
        const Status done = together.step(s, &outputs);
        ASSERT_TRUE(done) << s << ": " << done.error().message;
        ASSERT_TRUE(same(outputs, expected[static_cast<std::size_t>(s)])) << "step " << s;
      }
      EXPECT_GT(together.cache().report().pages_read_again, 0u);
    }
}

// What selectors and codecs share between threads when they form, fit and choose, each its own.
TEST_F(CacheThreads, EveryMethodAnswersAsWithOneThread) {
  const std::string methods = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  for (const std::string& method : method_names(methods)) {
    if (method.starts_with("faiss_")) continue;  // not in this build
    SCOPED_TRACE(method);
    const CacheOptions options = cache_options("threads", method, kCachedBytes);
    Walk alone(options, 1, kIsa), together(options, kThreads, kIsa);
    for (int s = 0; s < kShortWalk; ++s) {
      std::vector<float> expected, outputs;
      ASSERT_TRUE(alone.step(s, &expected));
      ASSERT_TRUE(together.step(s, &outputs));
      ASSERT_TRUE(same(outputs, expected)) << "step " << s;
    }
  }
}

TEST_P(CacheThreadsOver, ASessionGoesOnAsWithOneThread) {
  const test::TemporaryFolder folder("session-threads");
  for (const char* method : {"exact", "sketch"}) {
    SCOPED_TRACE(method);
    CacheOptions options = cache_options(GetParam(), method, kCachedBytes);
    auto never = std::move(*KvCache::create(options, 1, kIsa));
    const Timeline straight = std::move(*never->start());
    options.session.path = folder.path() + "/" + method + ".tls";
    for (int stop = 0; stop < 3; ++stop) {
      auto made = KvCache::create(options, kThreads, kIsa);
      ASSERT_TRUE(made) << made.error().message;
      KvCache* const cache = made->get();
      auto timeline = stop == 0 ? cache->start() : cache->resume();
      ASSERT_TRUE(timeline) << timeline.error().message;
      for (const std::uint32_t rows : {200u, 3u, 1u}) {
        const Pass pass = rows > kMaxStepRows ? Pass::prefill : Pass::decode;
        const auto one = advance(cache, *timeline, rows, pass);
        const auto other = advance(never.get(), straight, rows, pass);
        ASSERT_TRUE(one) << one.error().message;
        ASSERT_TRUE(other) << other.error().message;
        ASSERT_TRUE(same(*one, *other)) << "after stop " << stop;
      }
      const Status saved = cache->save(*timeline, session_text(timeline->length()));
      ASSERT_TRUE(saved) << saved.error().message;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, CacheThreadsOver, ::testing::Values("uring", "threads"),
                         [](const auto& suite) { return suite.param; });

}  // namespace
}  // namespace thermocline
