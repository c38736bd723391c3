// The small dense operations on the device, against plain loops in double.
#include "kernels/cuda/dense.h"

#include <cfloat>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/reference.h"
#include "tests/unit/cuda/on_device.h"
#include "tests/unit/cuda/stream_test.h"

namespace thermocline::cuda {
namespace {

constexpr std::size_t kSizes[] = {1, 3, 31, 64, 100, 256, 577, 1536};
constexpr std::size_t kRows = 3;
constexpr double kUnit = 0x1p-24;

class DenseTest : public StreamTest {
 protected:
  std::vector<float> values(std::size_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    for (float& v : x) v = normal(random_) * (random_() % 31 == 0 ? 500.0f : 1.0f);
    return x;
  }
  static MatView<float> rows(const OnDevice<float>& of, std::size_t cols) {
    return {of.data(), kRows, cols};
  }
  std::mt19937 random_{2};
};

TEST_F(DenseTest, RmsNorm) {
  for (const std::size_t n : kSizes) {
    const std::vector<float> x = values(kRows * n), weight = values(n);
    const OnDevice<float> from(x), by(weight), to(x);
    ASSERT_TRUE(rms_norm(*stream_, rows(from, n), by.data(), 1e-5f, rows(to, n)));
    ASSERT_TRUE(rms_norm(*stream_, rows(from, n), by.data(), 1e-5f, rows(from, n)));  // in place
    ASSERT_TRUE(stream_->wait());
    const std::vector<float> out = to.copy();
    EXPECT_EQ(from.copy(), out) << n;
    std::vector<double> want(n);
    // A sum of squares, which its root halves; a mean, a sum, a root, a quotient, two products.
    const double bound = (static_cast<double>(n) / 2 + 8) * kUnit;
    for (std::size_t r = 0; r < kRows; ++r) {
      reference::rms_norm(x.data() + r * n, weight.data(), n, 1e-5f, want.data());
      for (std::size_t i = 0; i < n; ++i)
        ASSERT_NEAR(out[r * n + i], want[i], bound * std::abs(want[i])) << n << ", value " << i;
    }
  }
}

TEST_F(DenseTest, RmsNormOfZerosIsZero) {
  const OnDevice<float> x(std::vector<float>(kRows * 40)), by(std::vector<float>(40, 3.0f));
  ASSERT_TRUE(rms_norm(*stream_, rows(x, 40), by.data(), 1e-6f, rows(x, 40)));
  ASSERT_TRUE(stream_->wait());
  EXPECT_EQ(x.copy(), std::vector<float>(kRows * 40));
}

TEST_F(DenseTest, AddsRowsOrOneRowToAll) {
  for (const std::size_t n : kSizes) {
    const std::vector<float> x = values(kRows * n), into = values(kRows * n);
    const OnDevice<float> from(x), each(into), all(into);
    ASSERT_TRUE(add(*stream_, rows(from, n), rows(each, n)));
    ASSERT_TRUE(add(*stream_, MatView<const float>(from.data(), kRows, n, 0), rows(all, n)));
    ASSERT_TRUE(stream_->wait());
    for (std::size_t i = 0; i < into.size(); ++i) {
      ASSERT_EQ(each.copy()[i], into[i] + x[i]) << n << ", value " << i;
      ASSERT_EQ(all.copy()[i], into[i] + x[i % n]) << n << ", value " << i;
    }
  }
}

// Every magnitude that a float has, both signs, the bends of the exponential among them.
TEST_F(DenseTest, Activates) {
  std::vector<float> x{0.0f, -0.0f, 87.0f, -87.0f, -87.5f, 88.0f, -88.0f, 88.8f, -103.9f, -104.1f};
  for (float v = 1e-38f; v < 1e38f; v *= 1.07f) x.push_back(v), x.push_back(-v);
  for (float v = -120.0f; v < 120.0f; v += 0.0137f) x.push_back(v);
  const std::size_t n = x.size();
  std::vector<float> up(n, 3.0f);
  for (std::size_t i = 0; i < n; ++i) up[i] = i % 2 == 0 ? 3.0f : -0.25f;
  const OnDevice<float> factor(up);
  for (const Activation activation : {Activation::silu, Activation::gelu}) {
    const OnDevice<float> gate(x);
    ASSERT_TRUE(activate(*stream_, activation, MatView<const float>(factor.data(), 1, n),
                         MatView<float>(gate.data(), 1, n)));
    ASSERT_TRUE(stream_->wait());
    const std::vector<float> out = gate.copy();
    std::vector<double> want(n);
    (activation == Activation::silu ? reference::silu_mul : reference::gelu_mul)(
        x.data(), up.data(), n, want.data());
    for (std::size_t i = 0; i < n; ++i) {
      // What e^x is taken of is off by a few roundings of its own size.
      const double power = std::abs(double{x[i]}) * (activation == Activation::gelu ? 10 : 1);
      const double bound = (8 + (x[i] < 0 ? std::min(power, 2e3) * 4 : 0)) * kUnit;
      if (std::abs(want[i]) > double{FLT_MAX}) continue;
      ASSERT_NEAR(out[i], want[i], bound * std::abs(want[i]) + 32 * double{FLT_MIN})
          << (activation == Activation::silu ? "silu " : "gelu ") << x[i];
    }
  }
}

TEST_F(DenseTest, OfNothingIsNothing) {
  EXPECT_TRUE(rms_norm(*stream_, {}, nullptr, 0, {}));
  EXPECT_TRUE(add(*stream_, {}, {}));
  EXPECT_TRUE(activate(*stream_, Activation::silu, {}, {}));
  EXPECT_TRUE(stream_->wait());
}

}  // namespace
}  // namespace thermocline::cuda
