// Which of a prefill's queries a selector sees.
#include "runtime/query_sample.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "runtime/kv_cache.h"
#include "tests/support/dense_oracle.h"
#include "tests/support/written_rows.h"

namespace thermocline {
namespace {

TEST(QuerySample, IsOfPositionsOnAGridAndNoMoreThanWerePlanned) {
  for (const std::uint32_t from : {0u, 1u, 4u, 15u, 16u, 17u, 8196u, 100000u})
    for (const std::uint32_t rows : {0u, 1u, 15u, 16u, 17u, 500u, 8191u, 8192u, 8193u, 32768u}) {
      const std::uint32_t end = from + rows;
      const QuerySample sample = QuerySample::of(from, end);
      EXPECT_LE(sample.count, QuerySample::most(rows)) << from << " " << rows;
      EXPECT_LE(sample.count, QuerySample::kMost);
      EXPECT_EQ(sample.count, QuerySample::of(from, end).count);
      for (std::uint32_t i = 0; i < sample.count; ++i) {
        EXPECT_EQ(sample.position(i) % QuerySample::kLeastStride, 0u);
        EXPECT_GE(sample.position(i), from);
        EXPECT_LT(sample.position(i), end);
      }
      // All over the text: nothing longer than two strides is without one.
      if (rows >= 2 * sample.stride) {
        ASSERT_GT(sample.count, 0u);
        EXPECT_LT(sample.position(0), from + sample.stride);
        EXPECT_GE(sample.position(sample.count - 1) + sample.stride, end);
      }
    }
}

// What a step reads after a prefill of the same keys and values, but other queries.
std::vector<float> decoded(const std::string& selector, unsigned queries, int threads) {
  constexpr std::uint32_t kRows = 3000;
  CacheOptions options;
  LayerSpec spec;
  spec.q_heads = 4;
  spec.kv_heads = 2;
  spec.key_dim = spec.value_dim = 32;
  spec.scale = 0.2f;
  options.layers = {spec};
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.method_overrides = {"select.by=" + selector, "select.rows=64"};
  if (selector == "graph") options.method_overrides.push_back("select.beam=1");
  options.max_positions = kRows + 10;
  auto cache = KvCache::create(options, threads, "auto");
  EXPECT_TRUE(cache) << (cache ? "" : cache.error().message);
  if (!cache) return {};
  const Timeline timeline = std::move(*(*cache)->start());
  std::mt19937 random(5), of_prefill(queries), of_step(9);
  const auto advance = [&](std::uint32_t n, std::mt19937& asking) {
    std::vector<Token> at;
    for (std::uint32_t r = 0; r < n; ++r) at.push_back({timeline.id(), timeline.length() + r});
    const auto k = random_rows(random, n * 64), v = random_rows(random, n * 64);
    const auto q = random_rows(asking, n * 128, 2.0f);
    std::vector<float> out(n * 128);
    EXPECT_TRUE((*cache)->begin(at, n > 1 ? Pass::prefill : Pass::decode));
    EXPECT_TRUE((*cache)->append(LayerId{0}, {k.data(), n, 64}, {v.data(), n, 64}));
    EXPECT_TRUE((*cache)->attend(LayerId{0}, {q.data(), n, 128}, {out.data(), n, 128}));
    EXPECT_TRUE((*cache)->commit());
    return out;
  };
  advance(kRows, of_prefill);
  return advance(1, of_step);
}

// Of no other selector: it would see what it did not ask for.
TEST(QuerySample, ReachesTheSelectorThatWatchesQueries) {
  EXPECT_EQ(decoded("flat", 1, 1), decoded("flat", 2, 1));
  EXPECT_NE(decoded("graph", 1, 1), decoded("graph", 2, 1));
  EXPECT_EQ(decoded("graph", 1, 1), decoded("graph", 1, 2));
}

// What a fitter is shown of a prefill's queries is planned and reserved, where it is most of what
// sealing takes.
TEST(QuerySample, OfAFitIsInTheLedger) {
  CacheOptions options;
  options.layers = {plain_layer(1, 64, 64, 64)};
  options.method = "think";
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.max_positions = 400;
  options.course = Course{{}, {400}};
  const auto plan = KvCache::plan(options, 1);
  ASSERT_TRUE(plan) << plan.error().message;
  const auto cache = KvCache::create(options, 1, "auto");
  ASSERT_TRUE(cache) << cache.error().message;
  const auto timeline = (*cache)->start();
  ASSERT_TRUE(advance(cache->get(), *timeline, 400, Pass::prefill));
  const auto sealing = [](const MemoryPlan& of) {
    for (const MemoryLine& line : of.lines)
      if (line.tier == "host" && line.purpose == "sealing") return line.peak_bytes;
    return std::uint64_t{0};
  };
  const std::uint64_t sampled = 32u * 64 * 64 * sizeof(float);
  EXPECT_GT(sealing((*cache)->usage()), sampled);
  EXPECT_LE(sealing((*cache)->usage()), sealing(*plan));
  EXPECT_GE(sealing((*cache)->usage()), sealing(*plan) * 95 / 100);
}

}  // namespace
}  // namespace thermocline
