#include "kernels/topk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/cpu/table.h"

namespace thermocline {
namespace {

std::vector<RowSet> sorted_top(const std::vector<float>& value, std::size_t k) {
  std::vector<std::uint32_t> order;
  for (std::uint32_t i = 0; i < value.size(); ++i)
    if (value[i] >= 0.0f) order.push_back(i);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::uint32_t a, std::uint32_t b) { return value[a] > value[b]; });
  std::vector<RowSet> sets((value.size() + 63) / 64);
  for (std::size_t i = 0; i < std::min(k, order.size()); ++i)
    sets[order[i] / 64] |= RowSet{1} << order[i] % 64;
  return sets;
}

void expect_same(const std::vector<float>& value, std::size_t k) {
  static TopRowsScratch scratch;  // used again and again, as a selector does
  const std::vector<RowSet> expected = sorted_top(value, k);
  std::size_t bits = 0;
  for (const RowSet set : expected) bits += static_cast<std::size_t>(count(set));
  for (const CpuTable* table : all_cpu_tables()) {
    if (!usable(*table)) continue;
    std::vector<RowSet> sets((value.size() + 63) / 64, kAllRows);
    const std::size_t taken = top_rows(table->topk, value, k, &scratch, sets);
    EXPECT_EQ(sets, expected) << table->name << ", " << value.size() << " values, k " << k;
    EXPECT_EQ(taken, bits);
  }
}

TEST(TopRows, AgreesWithASort) {
  std::mt19937 random(1);
  std::exponential_distribution<float> spread(1.0f);
  for (const std::size_t n : {1, 15, 16, 17, 63, 64, 65, 1000, 7601, 40000}) {
    std::vector<float> value(n);
    for (float& v : value) v = std::exp(-20.0f * spread(random));
    for (const std::size_t k :
         {std::size_t{1}, std::size_t{2}, n / 50, n / 16, n / 2, n - 1, n, n + 9})
      expect_same(value, k);
  }
}

TEST(TopRows, GivesTiesToTheLowerRow) {
  std::mt19937 random(2);
  for (const int levels : {1, 2, 5}) {
    std::vector<float> value(3000);
    for (float& v : value) v = static_cast<float>(random() % static_cast<unsigned>(levels));
    for (const std::size_t k : {1, 7, 60, 200, 1500, 2999}) expect_same(value, k);
  }
  expect_same(std::vector<float>(500, 0.0f), 130);
  expect_same({0.0f, -0.0f, 0.0f, -0.0f}, 2);  // the two zeros are equal
}

TEST(TopRows, SkipsWhatIsNoRow) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  std::vector<float> value{-1.0f, kNaN, 0.5f, kInf, 0.0f, -kInf, 1e-42f};
  value.resize(40, -1.0f);
  for (const std::size_t k : {1, 2, 3, 4, 5, 40}) expect_same(value, k);
  TopRowsScratch scratch;
  std::vector<RowSet> none(1, kAllRows);
  EXPECT_EQ(top_rows(all_cpu_tables()[0]->topk, std::vector<float>(9, kNaN), 3, &scratch, none),
            0u);
  EXPECT_EQ(none[0], 0u);
  EXPECT_EQ(top_rows(all_cpu_tables()[0]->topk, {}, 3, &scratch, {}), 0u);
}

}  // namespace
}  // namespace thermocline
