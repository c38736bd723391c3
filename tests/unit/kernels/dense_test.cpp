#include "kernels/dense.h"

#include <gtest/gtest.h>

#include <bit>
#include <cfloat>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/half.h"
#include "kernels/cpu/table.h"
#include "kernels/reference.h"

namespace thermocline {
namespace {

constexpr std::size_t kSizes[] = {1, 3, 7, 8, 15, 16, 17, 31, 64, 100, 577, 1536};

std::vector<float> random_values(std::size_t n, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& v : x) v = normal(rng) * (rng() % 31 == 0 ? 500.0f : 1.0f);
  return x;
}

// Every magnitude that a float has, both signs, the bends of the exponential among them.
std::vector<float> all_magnitudes() {
  std::vector<float> x{0.0f, -0.0f, 87.0f, -87.0f, -87.5f, 88.0f, -88.0f, 88.8f, -103.9f, -104.1f};
  for (float v = 1e-38f; v < 1e38f; v *= 1.07f) x.push_back(v), x.push_back(-v);
  for (float v = -120.0f; v < 120.0f; v += 0.0137f) x.push_back(v);
  return x;
}

class Dense : public ::testing::TestWithParam<const CpuTable*> {
 protected:
  void SetUp() override {
    if (!usable(*GetParam())) GTEST_SKIP() << "this machine lacks " << lacking(*GetParam());
  }
  const DenseOps& ops() const { return GetParam()->dense; }
  std::mt19937 rng_{2};
};

TEST_P(Dense, RmsNorm) {
  for (const std::size_t n : kSizes) {
    const std::vector<float> x = random_values(n, rng_), weight = random_values(n, rng_);
    std::vector<float> out(n + 1, 99.0f);
    std::vector<double> want(n);
    reference::rms_norm(x.data(), weight.data(), n, 1e-5f, want.data());
    ops().rms_norm(x.data(), weight.data(), n, 1e-5f, out.data());
    for (std::size_t i = 0; i < n; ++i)
      ASSERT_NEAR(out[i], want[i], 1e-6 * std::abs(want[i])) << n << ", value " << i;
    EXPECT_EQ(out[n], 99.0f) << "past the end of " << n;

    std::vector<float> in_place = x;
    ops().rms_norm(in_place.data(), weight.data(), n, 1e-5f, in_place.data());
    for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(in_place[i], out[i]) << n;
  }
}

TEST_P(Dense, RmsNormOfZerosIsZero) {
  const std::vector<float> zeros(40), weight(40, 3.0f);
  std::vector<float> out(40, 1.0f);
  ops().rms_norm(zeros.data(), weight.data(), 40, 1e-6f, out.data());
  for (const float v : out) EXPECT_EQ(v, 0.0f);
}

TEST_P(Dense, RopeRotatesBothLayoutsAndNoMore) {
  for (const RopePairs layout : {RopePairs::neighbours, RopePairs::halves})
    for (const std::size_t pairs : {1u, 5u, 16u, 32u, 33u, 64u}) {
      std::vector<float> cosine(pairs), sine(pairs);
      for (std::size_t i = 0; i < pairs; ++i) {
        const double angle = static_cast<double>(rng_() % 100000) / 7;
        cosine[i] = static_cast<float>(std::cos(angle));
        sine[i] = static_cast<float>(std::sin(angle));
      }
      std::vector<float> x = random_values(2 * pairs + 3, rng_);
      const std::vector<float> before = x;
      std::vector<double> want(2 * pairs);
      reference::rope(cosine.data(), sine.data(), pairs, layout, before.data(), want.data());
      ops().rope(cosine.data(), sine.data(), pairs, layout, x.data());
      for (std::size_t i = 0; i < 2 * pairs; ++i) {
        const std::size_t other =
            layout == RopePairs::neighbours ? (i ^ 1) : (i + pairs) % (2 * pairs);
        ASSERT_NEAR(x[i], want[i],
                    1.5 * FLT_EPSILON * (std::abs(before[i]) + std::abs(before[other])))
            << pairs << " pairs, value " << i;
      }
      for (std::size_t i = 2 * pairs; i < x.size(); ++i) EXPECT_EQ(x[i], before[i]);
    }
}

TEST_P(Dense, AddAndScaleAreFloatArithmetic) {
  for (const std::size_t n : kSizes) {
    const std::vector<float> x = random_values(n, rng_), into = random_values(n, rng_);
    std::vector<float> sum = into, scaled = x;
    ops().add(x.data(), n, sum.data());
    ops().scale(0.3f, n, scaled.data());
    for (std::size_t i = 0; i < n; ++i) {
      ASSERT_EQ(sum[i], into[i] + x[i]) << n;
      ASSERT_EQ(scaled[i], 0.3f * x[i]) << n;
    }
  }
}

// e^x in float is exact to 3e-7; below FLT_MIN a result has fewer digits, or is zero.
TEST_P(Dense, SiluIsExactForEveryMagnitude) {
  const std::vector<float> gate = all_magnitudes();
  const std::vector<float> up(gate.size(), 1.0f);
  std::vector<float> out(gate.size());
  std::vector<double> want(gate.size());
  reference::silu_mul(gate.data(), up.data(), gate.size(), want.data());
  ops().silu_mul(gate.data(), up.data(), gate.size(), out.data());
  for (std::size_t i = 0; i < gate.size(); ++i)
    ASSERT_NEAR(out[i], want[i], 6e-7 * std::abs(want[i]) + 90 * double{FLT_MIN}) << gate[i];
}

// The exponent itself is rounded here, so a small result errs by that much more.
TEST_P(Dense, GeluIsExactForEveryMagnitude) {
  const std::vector<float> gate = all_magnitudes();
  const std::vector<float> up(gate.size(), 1.0f);
  std::vector<float> out(gate.size());
  std::vector<double> want(gate.size());
  reference::gelu_mul(gate.data(), up.data(), gate.size(), want.data());
  ops().gelu_mul(gate.data(), up.data(), gate.size(), out.data());
  for (std::size_t i = 0; i < gate.size(); ++i) {
    const double x = gate[i], exponent = std::min(90.0, std::abs(1.6 * (x + 0.0447 * x * x * x)));
    ASSERT_NEAR(out[i], want[i],
                (6e-7 + 2 * FLT_EPSILON * exponent) * std::abs(want[i]) + 90 * double{FLT_MIN})
        << x;
  }
}

TEST_P(Dense, GatesMultiplyAndStayInBounds) {
  for (const std::size_t n : kSizes) {
    const std::vector<float> gate = random_values(n, rng_), up = random_values(n, rng_);
    for (const bool silu : {true, false}) {
      std::vector<float> out(n + 1, 99.0f);
      std::vector<double> want(n);
      (silu ? reference::silu_mul : reference::gelu_mul)(gate.data(), up.data(), n, want.data());
      (silu ? ops().silu_mul : ops().gelu_mul)(gate.data(), up.data(), n, out.data());
      for (std::size_t i = 0; i < n; ++i)
        ASSERT_NEAR(out[i], want[i], 3e-5 * std::abs(want[i]) + 1e-30) << n << ", value " << i;
      EXPECT_EQ(out[n], 99.0f) << "past the end of " << n;
    }
  }
}

TEST_P(Dense, ToHalfRoundsToNearestEven) {
  for (const std::size_t n : kSizes) {
    std::vector<float> x = random_values(n, rng_);
    for (float& v : x) v *= std::ldexp(1.0f, static_cast<int>(rng_() % 50) - 30);
    x[0] = 1.0f + 0x1p-11f;  // halfway: to even
    std::vector<f16> out(n + 1, f16{0xbeef});
    ops().to_half(x.data(), n, out.data());
    for (std::size_t i = 0; i < n; ++i)
      ASSERT_EQ(out[i].bits, to_f16(x[i]).bits) << n << " " << x[i];
    EXPECT_EQ(out[n].bits, 0xbeef) << "past the end of " << n;
  }
  const float special[] = {0.0f,
                           -0.0f,
                           65504.0f,
                           65519.9f,
                           65520.0f,
                           -1e30f,
                           0x1p-24f,
                           0x1p-25f,
                           -0x1.8p-25f,
                           0x1p-14f - 0x1p-26f,
                           std::numeric_limits<float>::infinity(),
                           1.0f,
                           2.0f,
                           3.0f,
                           4.0f,
                           5.0f};
  f16 out[16];
  ops().to_half(special, 16, out);
  for (int i = 0; i < 16; ++i) EXPECT_EQ(out[i].bits, to_f16(special[i]).bits) << special[i];
}

TEST_P(Dense, ToBfloatRoundsToNearestEven) {
  for (const std::size_t n : kSizes) {
    std::vector<float> x = random_values(n, rng_);
    for (float& v : x) v *= std::ldexp(1.0f, static_cast<int>(rng_() % 50) - 30);
    x[0] = 1.0f + 0x1p-8f;  // halfway: to even
    std::vector<bf16> out(n + 1, bf16{0xbeef});
    ops().to_bfloat(x.data(), n, out.data());
    for (std::size_t i = 0; i < n; ++i)
      ASSERT_EQ(out[i].bits, to_bf16(x[i]).bits) << n << " " << x[i];
    EXPECT_EQ(out[n].bits, 0xbeef) << "past the end of " << n;
  }
  std::vector<float> special(32, std::numeric_limits<float>::quiet_NaN());
  for (std::size_t i = 0; i < 32; i += 2) special[i] = std::numeric_limits<float>::infinity();
  std::vector<bf16> out(32);
  ops().to_bfloat(special.data(), 32, out.data());
  for (std::size_t i = 0; i < 32; ++i)
    EXPECT_EQ(std::isnan(to_float(out[i])), i % 2 == 1) << "an infinity stays one: " << i;
}

INSTANTIATE_TEST_SUITE_P(Cpu, Dense, ::testing::ValuesIn(all_cpu_tables()),
                         [](const auto& it) { return std::string(it.param->name); });

}  // namespace
}  // namespace thermocline
