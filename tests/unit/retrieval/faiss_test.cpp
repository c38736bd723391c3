// FAISS's indexes against exact scores, where this build has them.
#include "retrieval/index/faiss_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "tests/unit/retrieval/sealed_keys.h"

namespace thermocline {
namespace {

constexpr HeadShape kShape{2, 64, 16};
constexpr std::uint32_t kWanted = 50;
// The last two are kept as they are: they are too short for inverted files.
constexpr std::uint32_t kSegments[] = {2000, 1100, 300, 20};
constexpr std::uint32_t kRows = 2000 + 1100 + 300 + 20;
// Of all of them together, by each query head: kWanted rows of each, as far as it has so many.
constexpr std::uint32_t kReturned = 3 * kWanted + 20;
// Where rows of one key begin, in three segments.
constexpr std::uint32_t kBeginAlike[] = {700, 2500, 3200}, kAlike = 60;
constexpr float kNotReturned = -std::numeric_limits<float>::infinity();

const CpuTable& table() { return **choose_cpu_table("auto"); }

// How much of the best of all segments' rows an index returned, and how far its scores were from
// the exact ones.
struct Outcome {
  double recall = 0, error = 0;
  std::size_t returned = 0;
};

// [heads][key_dim]
std::vector<float> random_queries(HeadShape shape) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 0.3f);
  std::vector<float> query(std::size_t{shape.heads} * shape.key_dim);
  for (float& x : query) x = normal(random);
  return query;
}

// [heads][rows] of all segments, by an index of the second of two KV heads that is asked for
// kWanted rows.
std::vector<float> scores(const KeyIndex& index, HeadShape shape, const SyntheticRows& rows,
                          const std::vector<float>& query, int threads) {
  std::vector<float> score(std::size_t{shape.heads} * kRows);
  std::vector<Formation> formed;
  std::vector<const SegmentIndex*> segments;
  std::uint32_t first = 0;
  for (const std::uint32_t n : kSegments) {
    auto made = index.form(rows.sealing(first, n), Workers(threads));
    EXPECT_TRUE(made) << (made ? "" : made.error().message);
    if (!made) return score;
    formed.push_back(std::move(*made));
    segments.push_back(formed.back().index.get());
    EXPECT_TRUE(index.formed(*segments.back()));
    EXPECT_EQ(segments.back()->bytes(), 2 * index.index_bytes(shape, n));
    first += n;
  }
  KeyScratch scratch;
  EXPECT_GT(index.score({1, shape, query.data(), segments, kWanted}, &scratch, score.data(), kRows),
            0u);
  return score;
}

Outcome ask(const KeyIndex& index, HeadShape shape, SyntheticRows& rows,
            const std::vector<float>& query, int threads) {
  const std::vector<float> score = scores(index, shape, rows, query, threads);
  Outcome outcome;
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    std::vector<std::pair<double, std::uint32_t>> exact;
    for (std::uint32_t r = 0; r < kRows; ++r) {
      double sum = 0;
      for (std::uint32_t d = 0; d < shape.key_dim; ++d)
        sum += double{query[h * shape.key_dim + d]} * to_float(rows.key(1, r)[d]);
      exact.emplace_back(-sum, r);
      if (score[h * kRows + r] == kNotReturned) continue;
      ++outcome.returned;
      outcome.error = std::max(outcome.error, std::abs(score[h * kRows + r] - sum));
    }
    std::sort(exact.begin(), exact.end());
    for (std::uint32_t i = 0; i < kWanted; ++i)
      outcome.recall += (score[h * kRows + exact[i].second] != kNotReturned) /
                        static_cast<double>(shape.heads * kWanted);
  }
  return outcome;
}

TEST(Faiss, FindsTheBestRowsByExactScores) {
  if (const Status built = check_faiss(); !built) GTEST_SKIP() << built.error().message;
  int threads = 1;
  for (const std::uint32_t dim : {64u, 80u, 96u, 128u, 256u}) {
    threads = 3 - threads;
    SCOPED_TRACE(testing::Message() << dim << " channels, " << threads << " threads");
    const HeadShape shape{2, dim, 16};
    SyntheticRows rows(shape, 2, kRows, 80, 5);
    const std::vector<float> query = random_queries(shape);
    const auto of = [&](const KeyIndex& index) { return ask(index, shape, rows, query, threads); };
    const Outcome all = of(FaissIvf({.probes = 1000}, table()));
    EXPECT_GT(all.recall, 0.999);
    EXPECT_LT(all.error, 1e-3);
    EXPECT_EQ(all.returned, shape.heads * kReturned);
    const Outcome few = of(FaissIvf({.probes = 2}, table()));
    EXPECT_GT(few.recall, 0.15);
    EXPECT_LT(few.recall, 1.0);
    EXPECT_LT(few.error, 1e-3);
    const Outcome graph = of(FaissHnsw({.beam = 400}, table()));
    EXPECT_GT(graph.recall, 0.9);
    EXPECT_LT(graph.error, 1e-3);
    // By its codes: how far scores may be from exact ones FAISS does not say.
    EXPECT_GT(of(FaissIvfPq({.probes = 1000}, table())).recall, 0.7);
  }
}

// Which of equal rows it returns is FAISS's own choice, so that only those three segments' are
// counted; the score of an IVFPQ's is that of its codes, and so only the same in a segment.
TEST(Faiss, OfEqualRowsReturnsAsManyAsAreWantedByOneScore) {
  if (const Status built = check_faiss(); !built) GTEST_SKIP() << built.error().message;
  constexpr std::uint32_t kDim = 96;
  const HeadShape shape{1, kDim, 16};
  SyntheticRows rows(shape, 2, kRows, 80, 5);
  for (const std::uint32_t first : kBeginAlike)
    for (std::uint32_t r = first; r < first + kAlike; ++r) {
      std::copy_n(rows.key(1, 0), kDim, rows.key(1, r));
      rows.key(1, r)[kDim - 1] = to_f16(60.0f);
    }
  std::vector<float> query(kDim);
  query.back() = 1;
  const auto check = [&](const KeyIndex& index, float error) {
    SCOPED_TRACE(index.name());
    std::vector<float> score = scores(index, shape, rows, query, 2);
    const auto returned = [](float s) { return s != kNotReturned; };
    for (const std::uint32_t first : kBeginAlike) {
      std::vector<float> alike;
      for (std::uint32_t r = first; r < first + kAlike; ++r)
        if (const float s = std::exchange(score[r], kNotReturned); returned(s)) alike.push_back(s);
      ASSERT_EQ(alike.size(), kWanted);
      EXPECT_NEAR(alike.front(), 60.0f, error);
      EXPECT_EQ(std::count(alike.begin(), alike.end(), alike.front()), kWanted);
    }
    // Others are of the segment that has none of them alone.
    EXPECT_EQ(std::count_if(score.begin(), score.end(), returned), kSegments[3]);
  };
  check(FaissIvf({}, table()), 0.0f);
  check(FaissIvfPq({}, table()), 1.0f);
  check(FaissHnsw({}, table()), 0.0f);
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
