// Product-quantised keys against exact scores.
#include "retrieval/index/pq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "tests/unit/retrieval/sealed_keys.h"

namespace thermocline {
namespace {

const CpuTable& table() { return **choose_cpu_table("auto"); }

BlockIndex index_of(const PqOptions& options = {}) {
  return BlockIndex(std::make_unique<PqCode>(options, table()));
}

std::vector<float> random_query(HeadShape shape, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.3f);
  std::vector<float> query(std::size_t{shape.heads} * shape.key_dim);
  for (float& x : query) x = normal(random);
  return query;
}

double exact(HeadShape shape, SyntheticRows* rows, const std::vector<float>& query, std::uint32_t h,
             std::uint32_t r) {
  double sum = 0;
  for (std::uint32_t d = 0; d < shape.key_dim; ++d)
    sum += double{query[h * shape.key_dim + d]} * to_float(rows->key(0, r)[d]);
  return sum;
}

std::vector<float> scores(const BlockIndex& index, HeadShape shape, const SegmentIndex* segment,
                          std::uint32_t rows, const std::vector<float>& query) {
  std::vector<float> score(std::size_t{shape.heads} * rows);
  KeyScratch scratch;
  index.score({0, shape, query.data(), {&segment, 1}, 1}, &scratch, score.data(), rows);
  return score;
}

// Every head size, and parts that do not divide it: keys that are all centroids score exactly.
TEST(Pq, ScoresKeysThatAreCentroidsExactly) {
  for (const std::uint32_t dim : {16u, 64u, 80u, 96u, 128u, 256u})
    for (const std::uint32_t parts : {1u, 7u, 8u}) {
      const HeadShape shape{2, dim, 16};
      SyntheticRows rows(shape, 1, 64, 8, dim);
      for (std::uint32_t r = 0; r < 64; ++r)
        std::copy_n(rows.key(0, r / 4 * 4), dim, rows.key(0, r));
      const BlockIndex index = index_of({.parts = parts});
      const auto formed = index.form(rows.sealing(), Workers(1));
      ASSERT_TRUE(formed);
      const std::vector<float> query = random_query(shape, 1);
      const std::vector<float> score = scores(index, shape, formed->index.get(), 64, query);
      for (std::uint32_t h = 0; h < 2; ++h)
        for (std::uint32_t r = 0; r < 64; ++r)
          EXPECT_NEAR(score[h * 64 + r], exact(shape, &rows, query, h, r), 2e-2);
    }
}

TEST(Pq, RanksTheBestRowsHigh) {
  const HeadShape shape{1, 64, 16};
  constexpr std::uint32_t kRows = 4096, kBest = 100, kLooked = 400;
  SyntheticRows rows(shape, 1, kRows, 170, 3);
  const BlockIndex index = index_of();
  const auto formed = index.form(rows.sealing(), Workers(2));
  ASSERT_TRUE(formed);
  EXPECT_LE(formed->index->bytes(), index.index_bytes(shape, kRows));
  double found = 0;
  for (unsigned q = 0; q < 10; ++q) {
    const std::vector<float> query = random_query(shape, q);
    const std::vector<float> score = scores(index, shape, formed->index.get(), kRows, query);
    std::vector<std::uint32_t> by_code(kRows), by_key(kRows);
    std::vector<double> truth(kRows);
    for (std::uint32_t r = 0; r < kRows; ++r) {
      by_code[r] = by_key[r] = r;
      truth[r] = exact(shape, &rows, query, 0, r);
    }
    std::partial_sort(by_key.begin(), by_key.begin() + kBest, by_key.end(),
                      [&](auto a, auto b) { return truth[a] > truth[b]; });
    std::partial_sort(by_code.begin(), by_code.begin() + kLooked, by_code.end(),
                      [&](auto a, auto b) { return score[a] > score[b]; });
    for (std::uint32_t i = 0; i < kBest; ++i)
      found += std::count(by_code.begin(), by_code.begin() + kLooked, by_key[i]);
  }
  EXPECT_GT(found / 1000, 0.8);  // by chance: 0.1
}

TEST(Pq, TakesHostileKeysAndRefusesCodesOfNoCentroid) {
  const HeadShape shape{1, 64, 16};
  SyntheticRows rows(shape, 1, 300, 5, 3);
  for (std::uint32_t d = 0; d < 64; ++d) {
    rows.key(0, 7)[d] = {0x7e00};   // NaN
    rows.key(0, 30)[d] = {0x7c00};  // infinity
    rows.key(0, 90)[d] = to_f16(65504.0f);
  }
  const BlockIndex index = index_of();
  const auto formed = index.form(rows.sealing(), Workers(1));
  ASSERT_TRUE(formed);
  for (const float s : scores(index, shape, formed->index.get(), 300, random_query(shape, 1)))
    EXPECT_TRUE(std::isfinite(s));
  RecordWriter out;
  index.save(*formed, &out);
  std::vector<std::byte> bytes(out.bytes().begin(), out.bytes().end());
  RecordReader whole(bytes, "it");
  EXPECT_TRUE(index.load(shape, 1, 300, &whole));
  bytes[75 * 64 * sizeof(f16)] = std::byte{0xff};  // the first code: 75 centroids come before
  RecordReader broken(bytes, "it");
  const auto refused = index.load(shape, 1, 300, &broken);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::corrupt);
}

}  // namespace
}  // namespace thermocline
