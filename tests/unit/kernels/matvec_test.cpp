#include "kernels/matvec.h"

#include <gtest/gtest.h>

#include <bit>
#include <cfloat>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/table.h"
#include "kernels/cpu/vec_scalar.h"
#include "kernels/format/visit.h"
#include "kernels/reference.h"
#include "tests/unit/kernels/weights.h"

namespace thermocline {
namespace {

using testing::Scale;
using testing::Weights;

// Activation rows with the memory that their rounding needs.
class Rounded {
 public:
  Rounded(const CpuTable& table, MatView<const float> real)
      : value_(real.rows() * real.cols()),
        scale_(real.rows() * real.cols() / 32),
        sum_(scale_.size()) {
    view_ = {real, value_.data(), scale_.data(), sum_.data()};
    table.matvec.round_activations(view_);
  }
  const Activations& view() const { return view_; }

 private:
  std::vector<std::int16_t> value_;
  std::vector<float> scale_, sum_;
  Activations view_;
};

// Normal values, some blocks a thousand times smaller than others, and planted outliers.
std::vector<float> random_activations(std::size_t rows, std::size_t cols, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::vector<float> x(rows * cols);
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = normal(rng) * (i / 32 % 3 == 1 ? 1e-3f : 1.0f);
    if (rng() % 97 == 0) x[i] *= 300.0f;
  }
  return x;
}

// How far a result may be from the exact one. Rounding moves an activation by half a step (a
// block's largest magnitude / 32767), the float sums err by FLT_EPSILON / 2 an addition, of at most
// one a group and four lanes' worth more, and of the terms before offsets cancel against words.
std::vector<double> bounds(const WeightView& w, const float* x) {
  std::vector<float> row(w.cols);
  std::vector<double> bound(w.rows);
  const double float_error = FLT_EPSILON / 2 * (static_cast<double>(w.cols) / 32 + 12);
  for (std::size_t r = 0; r < w.rows; ++r) {
    reference::dequantize(w, r, row.data());
    for (std::size_t g = 0; g < w.cols / 32; ++g) {
      double offset = 0.0;
      bool rounded = false;
      visit_format(w.type, [&](auto format) {
        using Format = decltype(format);
        if constexpr (requires { typename Format::Block; }) {
          const auto* block = reinterpret_cast<const typename Format::Block*>(w.row(r));
          const auto by = Format::template scales<VecScalar>(block[g / Format::kGroups]);
          offset = by.offset[g % Format::kGroups];
          rounded = true;
        }
      });
      double largest = 0.0, weights = 0.0, terms = 0.0;
      for (std::size_t i = g * 32; i < g * 32 + 32; ++i) {
        largest = std::max(largest, std::abs(double{x[i]}));
        weights += std::abs(double{row[i]});
        terms += (std::abs(double{row[i]}) + 2 * std::abs(offset)) * std::abs(double{x[i]});
      }
      if (rounded) bound[r] += 0.51 * largest / 32767 * weights;
      bound[r] += float_error * terms;
    }
    bound[r] += FLT_MIN;
  }
  return bound;
}

class Matvec : public ::testing::TestWithParam<const CpuTable*> {
 protected:
  void SetUp() override {
    if (!usable(table())) GTEST_SKIP() << "this machine lacks " << lacking(table());
  }
  const CpuTable& table() const { return *GetParam(); }

  // All rows of w times all rows of x, checked against the reference.
  void check(const WeightView& w, MatView<const float> x, const std::string& what) {
    const Rounded rounded(table(), x);
    std::vector<float> out(x.rows() * w.rows);
    std::vector<double> want(out.size());
    table().matvec.multiply(w, 0, w.rows, rounded.view(), {out.data(), x.rows(), w.rows});
    reference::multiply(w, x, {want.data(), x.rows(), w.rows});
    for (std::size_t t = 0; t < x.rows(); ++t) {
      const std::vector<double> bound = bounds(w, x.row(t));
      for (std::size_t r = 0; r < w.rows; ++r)
        ASSERT_NEAR(out[t * w.rows + r], want[t * w.rows + r], bound[r])
            << what << ", row " << r << ", activations " << t;
    }
  }
};

TEST_P(Matvec, RoundsActivationsToHalfAStep) {
  std::mt19937 rng(1);
  std::vector<float> x = random_activations(3, 160, rng);
  std::fill_n(x.begin() + 64, 32, 0.0f);
  x[100] = -7e4f;  // an outlier sets its block's step
  const Rounded rounded(table(), {x.data(), 3, 160});
  const Activations& a = rounded.view();
  for (std::size_t b = 0; b < x.size() / 32; ++b) {
    float largest = 0.0f;
    double sum = 0.0;
    for (std::size_t i = b * 32; i < b * 32 + 32; ++i) {
      largest = std::max(largest, std::abs(x[i]));
      const std::size_t at = i % 32 / 2 + i % 2 * 16;  // evens first
      const double back = double{a.scale[b]} * a.value[b * 32 + at];
      sum += back;
      EXPECT_LE(std::abs(back - double{x[i]}), 0.505 * double{a.scale[b]}) << i;
      EXPECT_LE(std::abs(a.value[b * 32 + at]), 32767) << i;
    }
    EXPECT_FLOAT_EQ(a.scale[b] * 32767.0f, largest);
    EXPECT_NEAR(a.sum[b], sum, FLT_EPSILON * (std::abs(sum) + double{largest}));
  }
}

TEST_P(Matvec, RoundsTheSameInEveryTable) {
  std::mt19937 rng(11);
  const std::vector<float> x = random_activations(2, 576, rng);
  const MatView<const float> view{x.data(), 2, 576};
  const Rounded here(table(), view), plain(*all_cpu_tables().front(), view);
  for (std::size_t i = 0; i < x.size(); ++i)
    ASSERT_EQ(here.view().value[i], plain.view().value[i]) << i;
  for (std::size_t b = 0; b < x.size() / 32; ++b) {
    ASSERT_EQ(here.view().scale[b], plain.view().scale[b]) << b;
    ASSERT_EQ(here.view().sum[b], plain.view().sum[b]) << b;
  }
}

TEST_P(Matvec, RoundsTinyValuesToZeroAndHidesNoNan) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> x(6 * 32, 1.0f);
  std::fill_n(x.begin(), 32, 1e-38f);
  std::fill_n(x.begin() + 32, 32, 3e38f);
  x[64 + 5] = std::nanf("");
  x[96 + 31] = kInfinity;
  x[128] = -kInfinity;
  const Rounded rounded(table(), {x.data(), 1, x.size()});
  const Activations& a = rounded.view();
  EXPECT_EQ(a.scale[0], 0.0f);
  EXPECT_EQ(a.value[3], 0);
  EXPECT_EQ(a.value[32], 32767);
  EXPECT_FLOAT_EQ(a.scale[1] * 32767.0f, 3e38f);
  for (std::size_t b = 2; b < 5; ++b) {
    EXPECT_TRUE(std::isnan(a.scale[b])) << b;
    EXPECT_TRUE(std::isnan(a.sum[b])) << b;
    EXPECT_EQ(a.value[b * 32 + 7], 0) << b;
  }
  EXPECT_EQ(a.sum[5], 32.0f);
}

TEST_P(Matvec, MultipliesEveryType) {
  std::mt19937 rng(5);
  for (const WeightTypeInfo& t : weight_types())
    for (const std::size_t cols : {256u, 768u, 2304u})
      for (const Scale scale : {Scale::ordinary, Scale::extreme}) {
        const Weights w = testing::random_weights(t.type, 5, cols, scale, rng);
        const std::vector<float> x = random_activations(3, cols, rng);
        check(w.view, {x.data(), 3, cols},
              std::string(t.name) + " " + std::to_string(cols) +
                  (scale == Scale::extreme ? " extreme" : ""));
      }
}

// Types of small blocks have rows that are no multiple of anything but 32.
TEST_P(Matvec, MultipliesAwkwardSizes) {
  std::mt19937 rng(6);
  for (const WeightTypeInfo& t : weight_types()) {
    if (t.block_values > 32) continue;
    for (const std::size_t cols : {32u, 96u, 576u, 1056u}) {
      const Weights w = testing::random_weights(t.type, 9, cols, Scale::ordinary, rng);
      const std::vector<float> x = random_activations(6, cols, rng);
      check(w.view, {x.data(), 6, cols}, std::string(t.name) + " " + std::to_string(cols));
    }
  }
}

// The largest words times the largest activations, all of one sign: no integer sum may wrap.
TEST_P(Matvec, ExtremesDoNotOverflow) {
  for (const WeightTypeInfo& t : weight_types()) {
    if (t.block_values == 1) continue;
    for (const int fill : {0x00, 0xff, 0x80, 0x7f}) {
      Weights w;
      w.view = {t.type, nullptr, 2, 512};
      w.bytes.assign(w.view.bytes(), static_cast<std::byte>(fill));
      w.view.data = w.bytes.data();
      for (std::size_t at = 0; at < w.bytes.size(); at += t.block_bytes) {
        const f16 one = to_f16(1.0f);
        for (const std::size_t field : {std::size_t{0}, std::size_t{2}, std::size_t{208}})
          if (field != 208 ? t.type != WeightType::q6_k : t.type == WeightType::q6_k)
            std::memcpy(w.bytes.data() + at + field, &one, sizeof one);
        if (t.type == WeightType::q6_k)  // every part of the scale -128, times words of -32 or 31
          std::memset(w.bytes.data() + at + 192, 0x80, 16);
      }
      for (const float sign : {1.0f, -1.0f}) {
        const std::vector<float> x(512, sign * 1000.0f);
        check(w.view, {x.data(), 1, 512}, std::string(t.name) + " of " + std::to_string(fill));
      }
    }
  }
}

// Words, scales and activations that are exact in every step give exact results.
TEST_P(Matvec, IntegersAreExact) {
  std::mt19937 rng(8);
  Weights w = testing::random_weights(WeightType::q8_0, 4, 64, Scale::ordinary, rng);
  for (std::size_t at = 0; at < w.bytes.size(); at += 34) {
    const f16 one = to_f16(1.0f);
    std::memcpy(w.bytes.data() + at, &one, sizeof one);
    w.bytes[at + 2] = std::byte{0};  // meets the largest activation, which sets the step to 1
  }
  std::vector<float> x(64);
  for (float& v : x) v = static_cast<float>(static_cast<int>(rng() % 2001) - 1000);
  x[0] = x[32] = 32767.0f;
  const Rounded rounded(table(), {x.data(), 1, 64});
  std::vector<float> out(4);
  std::vector<double> want(4);
  table().matvec.multiply(w.view, 0, 4, rounded.view(), {out.data(), 1, 4});
  reference::multiply(w.view, {x.data(), 1, 64}, {want.data(), 1, 4});
  for (std::size_t r = 0; r < 4; ++r) EXPECT_EQ(double{out[r]}, want[r]) << r;
}

// Whatever the range of rows and the number of activation rows: the same bits, and no others
// touched.
TEST_P(Matvec, BitsDependOnTheTwoRowsAlone) {
  constexpr std::size_t kRows = 11, kTokens = 16, kCols = 512;
  constexpr float kUntouched = -12345.0f;
  std::mt19937 rng(9);
  const std::vector<float> x = random_activations(kTokens, kCols, rng);
  for (const WeightTypeInfo& t : weight_types()) {
    const Weights w = testing::random_weights(t.type, kRows, kCols, Scale::ordinary, rng);
    std::vector<float> alone(kTokens * kRows);
    for (std::size_t token = 0; token < kTokens; ++token) {
      const Rounded one(table(), {x.data() + token * kCols, 1, kCols});
      for (std::size_t r = 0; r < kRows; ++r)
        table().matvec.multiply(w.view, r, r + 1, one.view(),
                                {alone.data() + token * kRows, 1, kRows});
    }
    for (const std::size_t tokens : {1u, 2u, 3u, 4u, 5u, 7u, 8u, 16u})
      for (const auto& [first, last] : {std::pair{0, 11}, {1, 11}, {2, 7}, {5, 6}, {4, 4}}) {
        const Rounded some(table(), {x.data(), tokens, kCols});
        std::vector<float> out(tokens * kRows, kUntouched);
        table().matvec.multiply(w.view, static_cast<std::size_t>(first),
                                static_cast<std::size_t>(last), some.view(),
                                {out.data(), tokens, kRows});
        for (std::size_t i = 0; i < out.size(); ++i) {
          const int r = static_cast<int>(i % kRows);
          const float want = r >= first && r < last ? alone[i] : kUntouched;
          ASSERT_EQ(std::bit_cast<std::uint32_t>(out[i]), std::bit_cast<std::uint32_t>(want))
              << t.name << ", rows " << first << " to " << last << ", row " << r << " of " << tokens
              << " activation rows";
        }
      }
  }
}

TEST_P(Matvec, ANanReachesEveryResult) {
  std::mt19937 rng(10);
  for (const WeightTypeInfo& t : weight_types()) {
    const Weights w = testing::random_weights(t.type, 3, 256, Scale::ordinary, rng);
    std::vector<float> x(256, 1.0f);
    x[77] = std::nanf("");
    const Rounded rounded(table(), {x.data(), 1, 256});
    std::vector<float> out(3);
    table().matvec.multiply(w.view, 0, 3, rounded.view(), {out.data(), 1, 3});
    for (const float v : out) EXPECT_TRUE(std::isnan(v)) << t.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, Matvec, ::testing::ValuesIn(all_cpu_tables()),
                         [](const auto& it) { return std::string(it.param->name); });

}  // namespace
}  // namespace thermocline
