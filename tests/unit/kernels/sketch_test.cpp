#include "kernels/sketch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/table.h"

namespace thermocline {
namespace {

class SketchOfEveryTable : public testing::TestWithParam<const CpuTable*> {
 protected:
  void SetUp() override {
    if (!usable(*GetParam()))
      GTEST_SKIP() << GetParam()->name << ": this machine lacks " << lacking(*GetParam());
  }
  const SketchOps& ops() const { return GetParam()->sketch; }
  std::mt19937 random_{7};
  float normal() { return std::normal_distribution<float>()(random_); }
  std::vector<float> normals(std::size_t n) {
    std::vector<float> out(n);
    for (float& x : out) x = normal();
    return out;
  }
};

// The layout as the header words it.
int code_at(const std::vector<std::uint8_t>& codes, std::size_t dim, std::size_t row,
            std::size_t channel) {
  const std::size_t word = channel / 16, s = channel % 16 / 4, j = channel % 4;
  return codes[row / 16 * 16 * dim / 4 + word * 64 + 4 * (row % 16) + j] >> (2 * s) & 3;
}

TEST_P(SketchOfEveryTable, ScoresAsTheCodesSay) {
  for (const std::size_t dim : {16, 64, 96, 128, 144, 256})
    for (const std::size_t rows : {1, 7, 16, 19, 100})
      for (int heads = 1; heads <= 9; heads += dim == 64 ? 1 : 4) {
        const std::size_t first = 32, padded = (first + rows + 15) / 16 * 16;
        std::vector<std::uint8_t> codes(sketch_bytes(padded, dim));
        for (std::uint8_t& byte : codes) byte = static_cast<std::uint8_t>(random_());
        std::vector<f16> scales(padded);
        for (f16& s : scales) s = to_f16(std::abs(normal()));
        std::vector<std::int8_t> code(static_cast<std::size_t>(heads) * dim);
        std::vector<SketchQuery> queries;
        for (int h = 0; h < heads; ++h) {
          SketchQuery q{&code[static_cast<std::size_t>(h) * dim], 0.01f * static_cast<float>(h + 1),
                        0};
          for (std::size_t i = 0; i < dim; ++i) {
            // Head 0 has the largest sums there can be.
            const int c = h == 0 ? 127 : static_cast<int>(random_() % 255) - 127;
            code[static_cast<std::size_t>(h) * dim + i] = static_cast<std::int8_t>(c);
            q.sum += c;
          }
          queries.push_back(q);
        }
        if (rows >= 16) std::fill_n(&codes[first * dim / 4], 16 * dim / 4, std::uint8_t{0xff});
        const std::size_t stride = rows + 3;
        const std::vector<float> base = normals(static_cast<std::size_t>(heads) * stride);
        std::vector<float> score = base;
        ops().score(codes.data(), scales.data(), dim, first, rows, queries.data(), heads,
                    score.data(), score.data(), stride);
        for (std::size_t h = 0; h < static_cast<std::size_t>(heads); ++h) {
          for (std::size_t r = 0; r < rows; ++r) {
            double dot = 0.0, size = 0.0;
            for (std::size_t i = 0; i < dim; ++i) {
              const double term = (code_at(codes, dim, first + r, i) - 1.5) * code[h * dim + i];
              dot += term;
              size += std::abs(term);
            }
            const double unit = double{to_float(scales[first + r])} * queries[h].scale;
            const double expected = base[h * stride + r] + unit * dot;
            EXPECT_NEAR(score[h * stride + r], expected,
                        2e-6 * (unit * size + std::abs(base[h * stride + r])))
                << dim << " channels, row " << r << ", head " << h;
          }
          for (std::size_t r = rows; r < stride; ++r)  // nothing past the rows
            EXPECT_EQ(score[h * stride + r], base[h * stride + r]);
        }
      }
}

TEST_P(SketchOfEveryTable, EncodesEachRowAsWellAsAScaleCan) {
  for (const std::size_t dim : {16, 64, 96, 256}) {
    const std::size_t rows = 37, first = 16;
    std::vector<float> x = normals(rows * dim);
    std::fill_n(&x[5 * dim], dim, 0.0f);
    std::vector<std::uint8_t> codes(sketch_bytes(first + rows, dim));
    std::vector<f16> scales(64);
    ops().encode(x.data(), dim, first, rows, codes.data(), scales.data());
    double error = 0.0, energy = 0.0;
    for (std::size_t r = 0; r < rows; ++r) {
      const double scale = to_float(scales[first + r]);
      for (std::size_t i = 0; i < dim; ++i) {
        const double value = x[r * dim + i];
        const double got = (code_at(codes, dim, first + r, i) - 1.5) * scale;
        error += (value - got) * (value - got);
        energy += value * value;
        // The nearest of the four.
        for (int c = 0; c < 4; ++c)
          EXPECT_LE(std::abs(value - got), std::abs(value - (c - 1.5) * scale) + 1e-6);
      }
    }
    EXPECT_EQ(to_float(scales[first + 5]), 0.0f);
    // A uniform quantiser of two bits leaves 0.119 of a normal variable's energy at best.
    EXPECT_LT(error / energy, 0.125) << dim;
  }
}

TEST_P(SketchOfEveryTable, EncodesRowsThatAreNotNumbersWithoutHarm) {
  const std::size_t dim = 32;
  std::vector<float> x(3 * dim, 1.0f);
  x[3] = std::numeric_limits<float>::quiet_NaN();
  x[dim + 1] = std::numeric_limits<float>::infinity();
  x[2 * dim] = 1e30f;
  std::vector<std::uint8_t> codes(sketch_bytes(3, dim));
  std::vector<f16> scales(16);
  ops().encode(x.data(), dim, 0, 3, codes.data(), scales.data());
  for (int r = 0; r < 3; ++r)
    EXPECT_TRUE(std::isfinite(to_float(scales[static_cast<std::size_t>(r)])));
}

TEST_P(SketchOfEveryTable, ScoresExactRows) {
  for (const std::size_t dim : {16, 64, 256})
    for (const int heads : {1, 2, 3, 4, 5, 9}) {
      const std::size_t rows = 11, stride = 13, row_values = dim + 24;
      std::vector<f16> keys(rows * row_values);
      for (f16& k : keys) k = to_f16(normal());
      const std::vector<float> query = normals(static_cast<std::size_t>(heads) * dim);
      std::vector<float> score(static_cast<std::size_t>(heads) * stride, -7.0f);
      ops().exact(reinterpret_cast<const std::byte*>(keys.data()), row_values * sizeof(f16), rows,
                  dim, query.data(), heads, score.data(), stride);
      for (std::size_t h = 0; h < static_cast<std::size_t>(heads); ++h)
        for (std::size_t r = 0; r < rows; ++r) {
          double dot = 0.0;
          for (std::size_t i = 0; i < dim; ++i)
            dot += double{query[h * dim + i]} * to_float(keys[r * row_values + i]);
          EXPECT_NEAR(score[h * stride + r], dot, 1e-5 * std::sqrt(static_cast<double>(dim)) * 4);
        }
    }
}

TEST_P(SketchOfEveryTable, WeighsAgainstTheLargest) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const std::size_t n : {1, 3, 8, 16, 17, 100}) {
    std::vector<float> score = normals(n + 1);
    for (float& s : score) s *= 30.0f;
    if (n > 2) score[1] = -kInf;
    const std::vector<float> before = score;
    float max = 0, sum = 0;
    ops().weigh(score.data(), n, &max, &sum);
    double most = -kInf, total = 0;
    for (std::size_t i = 0; i < n; ++i) most = std::max(most, double{before[i]});
    EXPECT_EQ(max, static_cast<float>(most));
    for (std::size_t i = 0; i < n; ++i) {
      const double e = std::exp(double{before[i] - max});  // a difference of floats, rounded
      total += e;
      EXPECT_NEAR(score[i], e, 1e-6 * e + 1e-37);
    }
    EXPECT_NEAR(sum, total, 1e-5 * total);
    EXPECT_EQ(score[n], before[n]);
  }
  float max = 0, sum = 1;
  ops().weigh(nullptr, 0, &max, &sum);
  EXPECT_EQ(max, -kInf);
  EXPECT_EQ(sum, 0.0f);
  std::vector<float> none(5, -kInf);
  ops().weigh(none.data(), none.size(), &max, &sum);
  EXPECT_EQ(max, -kInf);
  EXPECT_EQ(sum, 0.0f);
}

TEST_P(SketchOfEveryTable, FindsTheNearestCentre) {
  for (const std::size_t dim : {1, 16, 80})
    for (const std::size_t centres : {1, 15, 16, 17, 50}) {
      const std::size_t rows = 31, panels = (centres + 15) / 16;
      std::vector<float> x = normals(rows * dim), centre = normals(centres * dim);
      if (centres > 20) std::copy_n(&centre[3 * dim], dim, &centre[20 * dim]);  // equals
      std::copy_n(&centre[std::min<std::size_t>(3, centres - 1) * dim], dim, &x[0]);
      std::vector<float> packed(panels * 16 * dim);
      for (std::size_t c = 0; c < panels * 16; ++c)
        for (std::size_t d = 0; d < dim; ++d)
          packed[(c / 16 * dim + d) * 16 + c % 16] = centre[std::min(c, centres - 1) * dim + d];
      std::vector<std::uint32_t> nearest(rows, 99);
      GetParam()->nearest.nearest(x.data(), rows, dim, packed.data(), centres, nearest.data());
      for (std::size_t r = 0; r < rows; ++r) {
        ASSERT_LT(nearest[r], centres);
        const auto dot = [&](std::size_t c) {
          double sum = 0;
          for (std::size_t d = 0; d < dim; ++d) sum += double{x[r * dim + d]} * centre[c * dim + d];
          return sum;
        };
        for (std::size_t c = 0; c < centres; ++c) EXPECT_LE(dot(c), dot(nearest[r]) + 1e-4);
        EXPECT_NE(nearest[r], 20u) << "centre 3 is its equal";
      }
    }
}

TEST(Hadamard, IsItsOwnInverseAndKeepsLengths) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const std::size_t n : {1, 2, 16, 48, 64, 80, 96, 256}) {
    std::vector<float> x(n);
    double before = 0, after = 0;
    for (float& v : x) {
      v = normal(random);
      before += v * v;
    }
    std::vector<float> y = x;
    hadamard(y.data(), n);
    for (const float v : y) after += v * v;
    EXPECT_NEAR(after, before, 1e-5 * before);
    if (n % 2 == 0) {
      EXPECT_NE(y, x);
    }
    hadamard(y.data(), n);
    for (std::size_t i = 0; i < n; ++i) EXPECT_NEAR(y[i], x[i], 1e-5);
  }
}

TEST(PrepareQuery, RoundsToEightBits) {
  std::vector<float> q(64, 0.0f), rotated(64);
  q[5] = 3.0f;
  std::vector<std::int8_t> code(64);
  const SketchQuery prepared = prepare_query(q.data(), 64, rotated.data(), code.data());
  std::int32_t sum = 0;
  for (std::size_t i = 0; i < 64; ++i) {
    EXPECT_NEAR(prepared.scale * static_cast<float>(code[i]), rotated[i], prepared.scale * 0.51f);
    sum += code[i];
  }
  EXPECT_EQ(prepared.sum, sum);
  std::fill(q.begin(), q.end(), 0.0f);
  EXPECT_EQ(prepare_query(q.data(), 64, rotated.data(), code.data()).scale, 0.0f);
}

INSTANTIATE_TEST_SUITE_P(Tables, SketchOfEveryTable,
                         testing::ValuesIn(all_cpu_tables().begin(), all_cpu_tables().end()),
                         [](const auto& table) { return std::string(table.param->name); });

}  // namespace
}  // namespace thermocline
