#include "retrieval/index/kmeans.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/table.h"

namespace thermocline {
namespace {

const CpuTable& table() { return **choose_cpu_table("auto"); }

std::vector<float> unit_rows(std::size_t count, std::size_t dim, std::size_t centres) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> centre(centres * dim), rows(count * dim);
  for (float& x : centre) x = normal(random);
  for (std::size_t r = 0; r < count; ++r) {
    const std::size_t c = random() % centres;
    double squares = 0;
    for (std::size_t d = 0; d < dim; ++d) {
      float& x = rows[r * dim + d];
      x = centre[c * dim + d] + 0.5f * normal(random);
      squares += x * x;
    }
    for (std::size_t d = 0; d < dim; ++d)
      rows[r * dim + d] /= static_cast<float>(std::sqrt(squares));
  }
  return rows;
}

std::vector<std::uint32_t> clustered(const std::vector<float>& rows, std::size_t dim,
                                     std::size_t clusters, int threads) {
  std::vector<std::uint32_t> out(rows.size() / dim, 1u << 30);
  const std::vector<std::size_t> groups =
      kmeans(rows.data(), out.size(), dim, clusters, {}, table().nearest, Workers(threads), out);
  EXPECT_EQ(groups.size(), kmeans_groups(clusters) + 1);
  EXPECT_EQ(groups.front(), 0u);
  EXPECT_EQ(groups.back(), clusters);
  EXPECT_TRUE(std::is_sorted(groups.begin(), groups.end()));
  return out;
}

// Mean squared distance of rows to the mean of their cluster.
double spread(const std::vector<float>& rows, std::size_t dim, std::size_t clusters,
              const std::vector<std::uint32_t>& of_row) {
  std::vector<double> sum(clusters * dim), size(clusters);
  for (std::size_t r = 0; r < of_row.size(); ++r) {
    ++size[of_row[r]];
    for (std::size_t d = 0; d < dim; ++d) sum[of_row[r] * dim + d] += rows[r * dim + d];
  }
  double out = 0;
  for (std::size_t r = 0; r < of_row.size(); ++r)
    for (std::size_t d = 0; d < dim; ++d) {
      const double x = rows[r * dim + d] - sum[of_row[r] * dim + d] / size[of_row[r]];
      out += x * x;
    }
  return out / static_cast<double>(of_row.size());
}

TEST(Kmeans, IsTheSameOnAnyNumberOfThreads) {
  const std::vector<float> rows = unit_rows(3001, 64, 90);
  const auto one = clustered(rows, 64, 188, 1);
  EXPECT_EQ(one, clustered(rows, 64, 188, 2));
  EXPECT_EQ(one, clustered(rows, 64, 188, 5));
}

TEST(Kmeans, FindsTheStructure) {
  const std::size_t dim = 64, clusters = 190;
  const std::vector<float> rows = unit_rows(3000, dim, 95);
  const auto found = clustered(rows, dim, clusters, 2);
  std::vector<std::uint32_t> any(found.size());
  std::mt19937 random(9);
  for (std::uint32_t& c : any) c = static_cast<std::uint32_t>(random() % clusters);
  // Noise is a fifth of the energy, the best that clusters could leave.
  EXPECT_LT(spread(rows, dim, clusters, found), 0.3);
  EXPECT_GT(spread(rows, dim, clusters, any), 0.8);
}

TEST(Kmeans, HoldsForAwkwardSizes) {
  for (const std::size_t count : {1, 2, 5, 17, 240, 241})
    for (const std::size_t clusters : {std::size_t{1}, (count + 15) / 16, count}) {
      const std::vector<float> rows = unit_rows(count, 16, 3);
      for (const std::uint32_t c : clustered(rows, 16, clusters, 2)) ASSERT_LT(c, clusters);
    }
  std::vector<float> same(100 * 16, 0.25f), none(100 * 16, 0.0f);
  std::vector<float> hostile(100 * 16, std::numeric_limits<float>::quiet_NaN());
  for (const auto& rows : {same, none, hostile})
    for (const std::uint32_t c : clustered(rows, 16, 7, 2)) ASSERT_LT(c, 7u);
}

}  // namespace
}  // namespace thermocline
