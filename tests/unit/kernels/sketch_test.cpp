#include "kernels/sketch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/table.h"
#include "kernels/hadamard.h"

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
int code_at(int bits, const std::vector<std::uint8_t>& codes, std::size_t dim, std::size_t row,
            std::size_t channel) {
  const std::size_t n = 32 / static_cast<std::size_t>(bits);
  const std::size_t word = channel / n, s = channel % n / 4, j = channel % 4;
  const std::size_t group = row / 16 * 16 * sketch_row_bytes(bits, dim);
  const int byte = codes[group + word * 64 + 4 * (row % 16) + j];
  return byte >> (static_cast<std::size_t>(bits) * s) & ((1 << bits) - 1);
}
constexpr int kBits[] = {1, 2, 4};

TEST_P(SketchOfEveryTable, WeighsRowsAsTheirCodesAndClustersSay) {
  for (const int bits : kBits)
    for (const std::size_t dim : {16, 64, 96, 128, 144, 256})
      for (const std::size_t rows : {1, 7, 16, 19, 100})
        for (int heads = 1; heads <= 9; heads += dim == 64 ? 1 : 4) {
          if (!sketch_takes(bits, dim)) continue;
          const std::size_t first = 32, padded = (first + rows + 15) / 16 * 16;
          std::vector<std::uint8_t> codes(sketch_bytes(bits, padded, dim));
          for (std::uint8_t& byte : codes) byte = static_cast<std::uint8_t>(random_());
          std::vector<f16> scales(padded);
          for (f16& s : scales) s = to_f16(0.02f * std::abs(normal()));
          // Clusters of 0 to 9 rows; the scan starts from one of those before the first row's.
          std::vector<std::uint16_t> starts{0};
          while (starts.back() < first + rows)
            starts.push_back(static_cast<std::uint16_t>(
                std::min<std::size_t>(starts.back() + random_() % 10, first + rows)));
          starts.push_back(starts.back());  // and an empty one at the end
          const std::size_t clusters = starts.size() - 1, h_count = static_cast<std::size_t>(heads);
          std::vector<std::int8_t> code(h_count * dim);
          std::vector<SketchQuery> queries;
          for (std::size_t h = 0; h < h_count; ++h) {
            SketchQuery q{&code[h * dim], 0.01f * static_cast<float>(h + 1), 0};
            for (std::size_t i = 0; i < dim; ++i) {
              // Head 0 has the largest sums there can be.
              const int c = h == 0 ? 127 : static_cast<int>(random_() % 255) - 127;
              code[h * dim + i] = static_cast<std::int8_t>(c);
              q.sum += c;
            }
            queries.push_back(q);
          }
          if (rows >= 16)
            std::fill_n(&codes[first * sketch_row_bytes(bits, dim)],
                        16 * sketch_row_bytes(bits, dim), std::uint8_t{0xff});
          const std::vector<float> cluster_score = normals(h_count * clusters);
          std::vector<float> shift = normals(h_count);
          shift[0] -= 100.0f;  // far below the scores: they are cut
          const SketchScan scan{.bits = bits,
                                .codes = codes.data(),
                                .scales = scales.data(),
                                .starts = starts.data(),
                                .key_dim = dim,
                                .heads = heads,
                                .queries = queries.data(),
                                .cluster_score = cluster_score.data(),
                                .cluster_stride = clusters,
                                .shift = shift.data()};
          const std::size_t whole = padded - first, stride = whole + 3;
          std::vector<float> weight(h_count * stride, -7.0f), sum(h_count, 1.0f);
          ops().weigh_rows(scan, first, rows, random_() % 2, weight.data(), stride, sum.data());
          for (std::size_t h = 0; h < h_count; ++h) {
            double total = 1.0;
            std::size_t cluster = 0;
            for (std::size_t r = 0; r < rows; ++r) {
              while (starts[cluster + 1] <= first + r) ++cluster;
              double dot = 0.0, size = 0.0;
              for (std::size_t i = 0; i < dim; ++i) {
                const double term =
                    (code_at(bits, codes, dim, first + r, i) - sketch_middle(bits)) *
                    code[h * dim + i];
                dot += term;
                size += std::abs(term);
              }
              const double unit = double{to_float(scales[first + r])} * queries[h].scale;
              const double base = double{cluster_score[h * clusters + cluster]} - shift[h];
              const double expected = std::exp(std::min(base + unit * dot, 60.0));
              const double error = 4e-6 * (unit * size + std::abs(base) + 1.0) + 1.1e-4;
              EXPECT_NEAR(weight[h * stride + r], expected, error * expected)
                  << bits << " bits, " << dim << " channels, row " << r << ", head " << h;
              total += expected;
            }
            EXPECT_NEAR(sum[h], total, 1e-3 * total);
            for (std::size_t r = rows; r < whole; ++r) EXPECT_EQ(weight[h * stride + r], 0.0f);
            for (std::size_t r = whole; r < stride; ++r) EXPECT_EQ(weight[h * stride + r], -7.0f);
          }
        }
}

TEST_P(SketchOfEveryTable, GivesRowsThatAreNotNumbersNoWeight) {
  std::vector<std::uint8_t> codes(sketch_bytes(2, 16, 16), 0xff);
  std::vector<f16> scales(16, to_f16(1.0f));
  scales[3].bits = 0x7e00;
  const std::uint16_t starts[] = {0, 16};
  std::vector<std::int8_t> code(16, 1);
  const SketchQuery query{code.data(), 1.0f, 16};
  const float score = 0.0f, shift = 20.0f;
  const SketchScan scan{2, codes.data(), scales.data(), starts, 16, 1, &query, &score, 1, &shift};
  std::vector<float> weight(16);
  float sum = 0;
  ops().weigh_rows(scan, 0, 16, 0, weight.data(), 16, &sum);
  for (std::size_t r = 0; r < 16; ++r)
    EXPECT_NEAR(weight[r], r == 3 ? 0.0 : std::exp(4.0), 1.1e-4 * std::exp(4.0)) << r;
  EXPECT_NEAR(sum, 15 * std::exp(4.0), 1.1e-4 * 15 * std::exp(4.0));
}

TEST_P(SketchOfEveryTable, FindsWhatIsUnread) {
  for (const std::size_t clusters : {1, 63, 64, 65, 300}) {
    // The first of them begins anywhere.
    std::vector<std::uint16_t> starts{static_cast<std::uint16_t>(random_() % 200 * (clusters % 2))};
    for (std::size_t c = 0; c < clusters; ++c)
      starts.push_back(static_cast<std::uint16_t>(starts.back() + random_() % 40));
    std::vector<RowSet> sets(starts.back() / 64 + 1);
    for (RowSet& set : sets) set = (RowSet{random_()} << 32 | random_()) | kAllRows << 40;
    if (sets.size() > 3) sets[1] = sets[2] = kAllRows;
    std::vector<float> mass = normals(clusters);
    for (float& m : mass) m = std::abs(m);
    std::vector<std::uint16_t> unread(clusters);
    std::vector<RowSet> estimated((clusters + 63) / 64, 7);
    ops().find_unread(sets.data(), starts.data(), mass.data(), clusters, 1.5f, unread.data(),
                      estimated.data());
    for (std::size_t c = 0; c < clusters; ++c) {
      int expected = 0;
      for (std::size_t r = starts[c]; r < starts[c + 1]; ++r)
        expected += !(sets[r / 64] >> r % 64 & 1);
      ASSERT_EQ(unread[c], expected) << clusters << " clusters, " << c;
      EXPECT_EQ(estimated[c / 64] >> c % 64 & 1,
                expected > 0 && mass[c] * static_cast<float>(expected) >= 1.5f);
    }
    if (clusters % 64 != 0) {
      EXPECT_EQ(estimated.back() >> clusters % 64, 0u);
    }
  }
}

TEST_P(SketchOfEveryTable, ScoresOfAQueryThatIsNotANumberAreNone) {
  std::vector<float> query(64, 1.0f);
  query[5] = std::numeric_limits<float>::quiet_NaN();
  std::vector<std::byte> keys(8 * 68, std::byte{1});
  std::vector<float> score(8);
  ops().dot_rows(RowFormat::int8, keys.data(), 68, 8, 64, query.data(), 1, score.data(), 8);
  for (const float s : score) EXPECT_TRUE(std::isnan(s));
}

TEST_P(SketchOfEveryTable, AddsHeads) {
  for (const int heads : {1, 2, 3, 9})
    for (const std::size_t n : {1, 8, 15, 16, 100}) {
      const std::size_t stride = n + 5;
      const std::vector<float> share = normals(static_cast<std::size_t>(heads));
      std::vector<float> weight = normals(static_cast<std::size_t>(heads) * stride);
      const std::vector<float> before = weight;
      ops().add_heads(weight.data(), n, stride, share.data(), heads, weight.data());
      for (std::size_t i = 0; i < weight.size(); ++i) {
        double expected = before[i], size = 0;
        if (i < n) {
          expected = 0;
          for (std::size_t h = 0; h < share.size(); ++h) {
            expected += double{before[h * stride + i]} * share[h];
            size += std::abs(double{before[h * stride + i]} * share[h]);
          }
        }
        EXPECT_NEAR(weight[i], expected, 1e-6 * size) << heads << " heads, " << n << ", " << i;
      }
    }
}

TEST_P(SketchOfEveryTable, FindsWhatTheCodesOfRowsLose) {
  std::mt19937_64 random(3);
  for (const std::size_t first : {0, 16, 48, 112})
    for (const std::size_t count : {1, 15, 16, 17, 100, 300}) {
      const std::size_t whole = (count + kSketchGroup - 1) / kSketchGroup * kSketchGroup;
      const std::vector<float> mass = normals(whole);
      std::vector<f16> scales;
      for (const float scale : normals(whole)) scales.push_back(to_f16(scale));
      scales[0] = to_f16(1e-6f);  // as good as its mean
      std::vector<RowSet> rows((first + whole) / 64 + 1);
      for (RowSet& set : rows) set = random() & random();
      for (std::size_t r = first + count; r < first + whole; ++r)
        rows[r / 64] &= ~(RowSet{1} << r % 64);
      rows[first / 64] |= RowSet{1} << first % 64;
      std::vector<float> expected;
      for (std::size_t r = 0; r < count; ++r)
        if (rows[(first + r) / 64] >> (first + r) % 64 & 1)
          expected.push_back(
              mass[r] * std::max(to_float(scales[r]) * to_float(scales[r]), kSketchLeastSquare));
      std::vector<float> loss(expected.size() + kSketchGroup);
      const std::size_t lost =
          ops().losses(mass.data(), scales.data(), rows.data(), first, count, loss.data());
      loss.resize(lost);
      EXPECT_EQ(loss, expected) << count << " rows from " << first;
    }
}

// A uniform quantiser leaves at best so much of a normal variable's energy.
double best_error(int bits) { return bits == 1 ? 0.3634 : bits == 2 ? 0.1188 : 0.01154; }

TEST_P(SketchOfEveryTable, EncodesEachRowAsWellAsAScaleCan) {
  for (const int bits : kBits)
    for (const std::size_t dim : {16, 64, 96, 256}) {
      if (!sketch_takes(bits, dim)) continue;
      const std::size_t rows = 37, first = 16;
      std::vector<float> x = normals(rows * dim);
      std::fill_n(&x[5 * dim], dim, 0.0f);
      std::vector<std::uint8_t> codes(sketch_bytes(bits, first + rows, dim));
      std::vector<f16> scales(64);
      ops().encode(bits, x.data(), dim, first, rows, codes.data(), scales.data());
      double error = 0.0, energy = 0.0;
      for (std::size_t r = 0; r < rows; ++r) {
        const double scale = to_float(scales[first + r]);
        for (std::size_t i = 0; i < dim; ++i) {
          const auto of_code = [&](int c) { return (c - double{sketch_middle(bits)}) * scale; };
          const double value = x[r * dim + i];
          const double got = of_code(code_at(bits, codes, dim, first + r, i));
          error += (value - got) * (value - got);
          energy += value * value;
          for (int c = 0; c < 1 << bits; ++c)  // the nearest of all
            EXPECT_LE(std::abs(value - got), std::abs(value - of_code(c)) + 1e-6);
        }
      }
      EXPECT_EQ(to_float(scales[first + 5]), 0.0f);
      EXPECT_LT(error / energy, 1.06 * best_error(bits)) << bits << " bits, " << dim;
    }
}

TEST_P(SketchOfEveryTable, EncodesRowsToTheirRotatedFormats) {
  for (const int bits : {2, 4})
    for (const std::uint32_t dim : {16u, 64u, 80u, 256u}) {
      const RowFormat format = bits == 2 ? RowFormat::rotated2 : RowFormat::rotated4;
      double error = 0.0, energy = 0.0;
      for (int r = 0; r < 40; ++r) {
        const std::vector<float> x = normals(dim);
        std::vector<float> rotated = x, got(dim);
        hadamard(rotated.data(), dim);
        std::vector<std::byte> row(row_bytes(format, dim) + 1, std::byte{0x5a});
        ops().encode_row(bits, rotated.data(), dim, row.data());
        EXPECT_EQ(row.back(), std::byte{0x5a});
        read_row(format, row.data(), dim, got.data());
        for (std::size_t i = 0; i < dim; ++i) {
          error += double{x[i] - got[i]} * (x[i] - got[i]);
          energy += double{x[i]} * x[i];
        }
      }
      EXPECT_LT(error / energy, 1.06 * best_error(bits)) << bits << " bits, " << dim;
    }
}

TEST_P(SketchOfEveryTable, EncodesRowsThatAreNotNumbersWithoutHarm) {
  for (const int bits : kBits) {
    const std::size_t dim = 32;
    std::vector<float> x(3 * dim, 1.0f);
    x[3] = std::numeric_limits<float>::quiet_NaN();
    x[dim + 1] = std::numeric_limits<float>::infinity();
    x[2 * dim] = 1e30f;
    std::vector<std::uint8_t> codes(sketch_bytes(bits, 3, dim));
    std::vector<f16> scales(16);
    ops().encode(bits, x.data(), dim, 0, 3, codes.data(), scales.data());
    for (int r = 0; r < 3; ++r)
      EXPECT_TRUE(std::isfinite(to_float(scales[static_cast<std::size_t>(r)])));
  }
}

TEST_P(SketchOfEveryTable, ScoresRows) {
  for (const RowFormat format : {RowFormat::f16, RowFormat::int8})
    for (const std::size_t dim : {16, 64, 256})
      for (const int heads : {1, 2, 3, 4, 5, 9}) {
        const std::size_t rows = 11, stride = 13, row_bytes = 2 * dim + 48;
        std::vector<std::byte> keys(rows * row_bytes);
        for (std::byte& b : keys) b = static_cast<std::byte>(random_());
        const auto key = [&](std::size_t r) { return keys.data() + r * row_bytes; };
        std::vector<f16> half(dim);
        for (std::size_t r = 0; r < rows; ++r) {
          for (f16& k : half) k = to_f16(normal());
          if (format == RowFormat::f16)
            std::memcpy(key(r), half.data(), dim * sizeof(f16));
          else
            std::memcpy(key(r) + dim, half.data(), sizeof(f16));  // the scale of any bytes
        }
        const std::vector<float> query = normals(static_cast<std::size_t>(heads) * dim);
        std::vector<float> score(static_cast<std::size_t>(heads) * stride, -7.0f);
        ops().dot_rows(format, keys.data(), row_bytes, rows, dim, query.data(), heads, score.data(),
                       stride);
        for (std::size_t h = 0; h < static_cast<std::size_t>(heads); ++h)
          for (std::size_t r = 0; r < rows; ++r) {
            double dot = 0.0, size = 0.0, keys_size = 0.0, largest = 0.0;
            std::vector<float> channel(dim);
            read_row(format, key(r), static_cast<std::uint32_t>(dim), channel.data());
            for (std::size_t i = 0; i < dim; ++i) {
              dot += double{query[h * dim + i]} * channel[i];
              size += std::abs(double{query[h * dim + i]} * channel[i]);
              keys_size += std::abs(channel[i]);
              largest = std::max(largest, std::abs(double{query[h * dim + i]}));
            }
            // Half a step of a query of 16 bits.
            const double rounding = format == RowFormat::int8 ? 0.5 / 32767 * largest : 0.0;
            EXPECT_NEAR(score[h * stride + r], dot, 1.2e-6 * size + rounding * keys_size);
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

TEST_P(SketchOfEveryTable, RotatesToTheBit) {
  for (const std::size_t n : {0, 1, 16, 48, 64, 80, 96, 256}) {
    const std::vector<float> x = normals(n);
    std::vector<float> expected = x, got = x;
    hadamard(expected.data(), n);
    GetParam()->dense.hadamard(got.data(), n);
    EXPECT_EQ(got, expected) << n;
  }
}

TEST_P(SketchOfEveryTable, RoundsQueriesToEightBits) {
  for (const std::size_t dim : {16, 64, 80}) {
    std::vector<float> q = normals(dim), rotated = q, scratch(dim);
    hadamard(rotated.data(), dim);
    std::vector<std::int8_t> code(dim);
    const SketchQuery prepared = ops().prepare(q.data(), dim, scratch.data(), code.data());
    EXPECT_EQ(prepared.code, code.data());
    std::int32_t sum = 0, largest = 0;
    for (std::size_t i = 0; i < dim; ++i) {
      EXPECT_NEAR(prepared.scale * static_cast<float>(code[i]), rotated[i], prepared.scale * 0.51f);
      sum += code[i];
      largest = std::max(largest, std::abs(std::int32_t{code[i]}));
    }
    EXPECT_EQ(prepared.sum, sum);
    EXPECT_EQ(largest, 127);
    std::fill(q.begin(), q.end(), 0.0f);
    EXPECT_EQ(ops().prepare(q.data(), dim, scratch.data(), code.data()).scale, 0.0f);
  }
}

TEST_P(SketchOfEveryTable, TakesLogsOfWeights) {
  for (const int heads : {1, 2, 3, 5, 16, 19})
    for (const std::size_t rows : {0, 1, 7, 40}) {
      const std::size_t n = static_cast<std::size_t>(heads);
      std::vector<float> shift = normals(n);
      for (std::size_t i = 0; i < 16; ++i) shift.push_back(shift[i]);
      std::vector<float> weight(rows * n + 1);
      for (float& w : weight) w = std::exp(20.0f * normal());
      if (rows > 1) weight[0] = 0.0f, weight[1] = 1.0f;
      const std::vector<float> before = weight;
      ops().log_weights(weight.data(), rows, shift.data(), heads);
      for (std::size_t i = 0; i < rows * n; ++i) {
        const double log = std::log(std::max(double{before[i]}, 0x1p-126));
        EXPECT_NEAR(weight[i], shift[i % n] + log, 3e-7 * (1 + std::abs(log)))
            << heads << " heads, " << i;
      }
      EXPECT_EQ(weight.back(), before.back());
    }
}

INSTANTIATE_TEST_SUITE_P(Tables, SketchOfEveryTable,
                         testing::ValuesIn(all_cpu_tables().begin(), all_cpu_tables().end()),
                         [](const auto& table) { return std::string(table.param->name); });

}  // namespace
}  // namespace thermocline
