// FAISS's indexes against exact scores, where this build has them.
#include "retrieval/index/faiss_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "tests/unit/retrieval/sealed_keys.h"

namespace thermocline {
namespace {

constexpr HeadShape kShape{2, 64, 16};
constexpr std::uint32_t kRows = 2000, kWanted = 50;

const CpuTable& table() { return **choose_cpu_table("auto"); }

// How much of the best an index returned, and how far its scores were from the exact ones.
struct Outcome {
  double recall = 0, error = 0;
  std::size_t returned = 0;
};
Outcome ask(const KeyIndex& index, int threads) {
  SyntheticRows rows(kShape, 2, kRows, 80, 5);
  const auto formed = index.form(rows.sealing(), Workers(threads));
  EXPECT_TRUE(formed) << (formed ? "" : formed.error().message);
  if (!formed) return {};
  const SegmentIndex* segment = formed->index.get();
  EXPECT_TRUE(index.formed(*segment));
  EXPECT_EQ(segment->bytes(), 2 * index.index_bytes(kShape, kRows));
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 0.3f);
  std::vector<float> query(kShape.heads * kShape.key_dim), score(kShape.heads * kRows);
  for (float& x : query) x = normal(random);
  KeyScratch scratch;
  EXPECT_GT(
      index.score({1, kShape, query.data(), {&segment, 1}, kWanted}, &scratch, score.data(), kRows),
      0u);
  Outcome outcome;
  for (std::uint32_t h = 0; h < kShape.heads; ++h) {
    std::vector<std::pair<double, std::uint32_t>> exact;
    for (std::uint32_t r = 0; r < kRows; ++r) {
      double sum = 0;
      for (std::uint32_t d = 0; d < kShape.key_dim; ++d)
        sum += double{query[h * kShape.key_dim + d]} * to_float(rows.key(1, r)[d]);
      exact.emplace_back(-sum, r);
      if (std::isinf(score[h * kRows + r])) continue;
      ++outcome.returned;
      outcome.error = std::max(outcome.error, std::abs(score[h * kRows + r] - sum));
    }
    std::sort(exact.begin(), exact.end());
    for (std::uint32_t i = 0; i < kWanted; ++i)
      outcome.recall += !std::isinf(score[h * kRows + exact[i].second]) / 100.0;
  }
  return outcome;
}

TEST(Faiss, FindsTheBestRowsByExactScores) {
  if (const Status built = check_faiss(); !built) GTEST_SKIP() << built.error().message;
  for (const int threads : {1, 2}) {
    const Outcome all = ask(FaissIvf({.probes = 1000}, table()), threads);
    EXPECT_GT(all.recall, 0.999);
    EXPECT_LT(all.error, 1e-3);
    EXPECT_EQ(all.returned, 2 * kWanted);
    const Outcome few = ask(FaissIvf({.probes = 2}, table()), threads);
    EXPECT_LT(few.recall, 1.0);
    const Outcome graph = ask(FaissHnsw({.beam = 400}, table()), threads);
    EXPECT_GT(graph.recall, 0.9);
    EXPECT_LT(graph.error, 1e-3);
    EXPECT_GT(ask(FaissIvfPq({.probes = 1000}, table()), threads).recall, 0.4);
  }
}

TEST(Faiss, IsKeptInNoFile) {
  EXPECT_FALSE(FaissIvf({}, table()).facts().in_files);
  RecordReader nothing({}, "it");
  const auto loaded = FaissIvf({}, table()).load(kShape, 1, 64, &nothing);
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().code, ErrorCode::unsupported);
}

// A plan counts blocks: no segment takes more than its blocks would.
TEST(Faiss, TakesNoMoreThanItsBlocks) {
  const FaissIvf ivf({}, table());
  const FaissIvfPq ivfpq({}, table());
  const FaissHnsw hnsw({}, table());
  for (const KeyIndex* index :
       {static_cast<const KeyIndex*>(&ivf), static_cast<const KeyIndex*>(&ivfpq),
        static_cast<const KeyIndex*>(&hnsw)})
    for (const std::uint32_t rows : {64u, 128u, 1000u, 1023u, 1024u, 1025u, 4096u, 8192u})
      for (const std::uint32_t dim : {16u, 64u, 256u}) {
        const HeadShape shape{1, dim, 16};
        EXPECT_LE(index->index_bytes(shape, rows),
                  (rows + 63) / 64 * index->index_bytes(shape, kBlockRows))
            << index->name() << " " << rows << " " << dim;
      }
}

}  // namespace
}  // namespace thermocline
