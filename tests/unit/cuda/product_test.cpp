// Coded weights times rows on the device, against plain loops in double, within bounds that are
// computed from the number of roundings.
#include "kernels/cuda/product.h"

#include <bit>
#include <cfloat>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kernels/matvec.h"
#include "kernels/reference.h"
#include "tests/unit/cuda/on_device.h"
#include "tests/unit/cuda/stream_test.h"
#include "tests/unit/kernels/weights.h"

namespace thermocline::cuda {
namespace {

using thermocline::testing::random_weights;
using thermocline::testing::Scale;
using Coded = thermocline::testing::Weights;

constexpr float kUntouched = -12345.0f;

class ProductTest : public StreamTest {
 protected:
  // Some blocks a thousand times smaller than others, and planted outliers.
  std::vector<float> rows(std::size_t count, std::size_t cols) {
    std::normal_distribution<float> normal;
    std::vector<float> x(count * cols);
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] = normal(random_) * (i / 32 % 3 == 1 ? 1e-3f : 1.0f);
      if (random_() % 97 == 0) x[i] *= 300.0f;
    }
    return x;
  }

  // [rows of x][w.rows]
  std::vector<float> multiply_there(const WeightView& w, const std::vector<float>& x) {
    const std::size_t count = x.size() / w.cols;
    const OnDevice<std::byte> weights(std::vector<std::byte>(w.data, w.data + w.bytes()));
    const OnDevice<float> from(x), to(std::vector<float>(count * w.rows + 1, kUntouched));
    WeightView there = w;
    there.data = weights.data();
    EXPECT_TRUE(multiply(*stream_, there, MatView<const float>(from.data(), count, w.cols),
                         MatView<float>(to.data(), count, w.rows)));
    EXPECT_TRUE(stream_->wait());
    std::vector<float> out = to.copy();
    EXPECT_EQ(out.back(), kUntouched);
    out.pop_back();
    return out;
  }

  void check(const WeightView& w, std::size_t count, const std::string& what) {
    const std::vector<float> x = rows(count, w.cols);
    const std::vector<float> out = multiply_there(w, x);
    const bool rounded = count > kFewRows;
    const auto operand = [&](float value) {
      return rounded ? double{to_float(to_bf16(value))} : double{value};
    };
    // Few rows: a lane's chain, and 5 sums across lanes. Many: one chain of all, of which tensor
    // cores may cut off what others round.
    const double roundings =
        rounded ? 2 * static_cast<double>(w.cols) : static_cast<double>(w.cols) / kLanes + 8 + 5;
    std::vector<float> row(w.cols);
    for (std::size_t r = 0; r < w.rows; ++r) {
      reference::dequantize(w, r, row.data());
      for (std::size_t t = 0; t < count; ++t) {
        double want = 0, terms = 0;
        for (std::size_t i = 0; i < w.cols; ++i) {
          const double term = operand(row[i]) * operand(x[t * w.cols + i]);
          want += term;
          terms += std::abs(term);
        }
        ASSERT_NEAR(out[t * w.rows + r], want, roundings * 0x1p-24 * terms + double{FLT_MIN})
            << what << ", weight row " << r << ", row " << t << " of " << count;
      }
    }
  }

  static constexpr double kLanes = 32;
  std::mt19937 random_{5};
};

TEST_F(ProductTest, OfFewRowsInEveryType) {
  for (const WeightTypeInfo& t : weight_types())
    for (const std::size_t cols : {256u, 768u, 2304u})
      for (const Scale scale : {Scale::ordinary, Scale::extreme})
        check(random_weights(t.type, 5, cols, scale, random_).view, 3,
              std::string(t.name) + " " + std::to_string(cols));
}

TEST_F(ProductTest, OfManyRowsInEveryType) {
  for (const WeightTypeInfo& t : weight_types())
    for (const std::size_t cols : {256u, 768u})
      check(random_weights(t.type, 70, cols, Scale::ordinary, random_).view, kFewRows + 1,
            std::string(t.name) + " " + std::to_string(cols));
}

// Types of small blocks have rows that are no multiple of anything but 32; and no number of rows
// fills tiles of either side.
TEST_F(ProductTest, OfAwkwardSizes) {
  for (const WeightTypeInfo& t : weight_types()) {
    if (t.block_values > 32) continue;
    for (const std::size_t cols : {32u, 96u, 1056u})
      check(random_weights(t.type, 9, cols, Scale::ordinary, random_).view, 6,
            std::string(t.name) + " " + std::to_string(cols));
  }
  for (const std::size_t w_rows : {1u, 63u, 64u, 65u})
    for (const std::size_t x_rows : {17u, 128u, 130u})
      check(random_weights(WeightType::q8_0, w_rows, 96, Scale::ordinary, random_).view, x_rows,
            std::to_string(w_rows) + " weight rows");
}

// Whatever other rows are there, on either side of kFewRows.
TEST_F(ProductTest, BitsDependOnTheTwoRowsAlone) {
  constexpr std::size_t kCols = 512, kRows = 70;
  for (const WeightType type : {WeightType::bf16, WeightType::q4_0, WeightType::q6_k}) {
    const Coded w = random_weights(type, kRows, kCols, Scale::ordinary, random_);
    const std::vector<float> x = rows(150, kCols);
    const auto first = [&](std::size_t count) {
      return multiply_there(w.view, {x.begin(), x.begin() + static_cast<long>(count * kCols)});
    };
    const std::vector<float> few = first(kFewRows), many = first(150);
    const auto same = [&](const std::vector<float>& some, const std::vector<float>& all) {
      for (std::size_t i = 0; i < some.size(); ++i)
        ASSERT_EQ(std::bit_cast<std::uint32_t>(some[i]), std::bit_cast<std::uint32_t>(all[i]))
            << info(type).name << ", " << some.size() / kRows << " rows, result " << i;
    };
    for (const std::size_t count : {1u, 2u, 4u, 5u, 15u}) same(first(count), few);
    for (const std::size_t count : {17u, 64u, 129u}) same(first(count), many);
  }
}

TEST_F(ProductTest, ANanReachesEveryResult) {
  const Coded w = random_weights(WeightType::q4_k, 3, 256, Scale::ordinary, random_);
  for (const std::size_t count : {std::size_t{1}, kFewRows + 1}) {
    std::vector<float> x(count * 256, 1.0f);
    x[77] = std::nanf("");
    const std::vector<float> out = multiply_there(w.view, x);
    for (std::size_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i < 3) << i;
  }
}

TEST_F(ProductTest, OfNothingIsNothing) {
  EXPECT_TRUE(multiply(*stream_, {}, {}, {}));
  EXPECT_TRUE(stream_->wait());
}

}  // namespace
}  // namespace thermocline::cuda
