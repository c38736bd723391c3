// Layers on a device against the same layers of plain loops in double: what lies between
// operations is rounded to float there.
#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "kernels/matvec.h"
#include "kernels/reference.h"
#include "tests/unit/cuda/stream_test.h"
#include "tests/unit/kernels/weights.h"

namespace thermocline {
namespace {

using testing::random_weights;
using testing::Scale;

constexpr std::size_t kWidth = 256, kInner = 512, kHeads = 8, kKvHeads = 2, kDim = 32;
constexpr float kEpsilon = 1e-5f;

// A layer's weights, with memory of their own.
class Layer {
 public:
  enum class Extras { none, biases, norms };

  Layer(WeightType type, Extras extras, std::mt19937& random) {
    const auto matrix = [&](std::size_t rows, std::size_t cols) {
      matrices_.push_back(random_weights(type, rows, cols, Scale::ordinary, random));
      return matrices_.back().view;
    };
    const auto vector = [&](std::size_t size) -> std::span<const float> {
      std::uniform_real_distribution<float> near_one(0.5f, 1.5f);
      vectors_.emplace_back(size);
      for (float& x : vectors_.back()) x = near_one(random);
      return vectors_.back();
    };
    view.q = matrix(kHeads * kDim, kWidth);
    view.k = matrix(kKvHeads * kDim, kWidth);
    view.v = matrix(kKvHeads * kDim, kWidth);
    view.output = matrix(kWidth, kHeads * kDim);
    view.gate = matrix(kInner, kWidth);
    view.up = matrix(kInner, kWidth);
    view.down = matrix(kWidth, kInner);
    view.attention_norm = vector(kWidth);
    view.feed_forward_norm = vector(kWidth);
    if (extras == Extras::biases) {
      view.q_bias = vector(kHeads * kDim);
      view.k_bias = vector(kKvHeads * kDim);
      view.v_bias = vector(kKvHeads * kDim);
    }
    if (extras == Extras::norms) {
      view.q_norm = vector(kDim);
      view.k_norm = vector(kDim);
      view.attention_post_norm = vector(kWidth);
      view.feed_forward_post_norm = vector(kWidth);
    }
  }

  LayerWeights view;

 private:
  std::vector<testing::Weights> matrices_;
  std::vector<std::vector<float>> vectors_;
};

std::vector<float> rounded(const std::vector<double>& x) { return {x.begin(), x.end()}; }

std::vector<float> norm(const std::vector<float>& x, std::span<const float> weight) {
  std::vector<double> out(x.size());
  for (std::size_t first = 0; first < x.size(); first += weight.size())
    reference::rms_norm(x.data() + first, weight.data(), weight.size(), kEpsilon,
                        out.data() + first);
  return rounded(out);
}

std::vector<float> product(const WeightView& w, const std::vector<float>& x,
                           std::span<const float> bias = {}) {
  std::vector<double> out(w.rows);
  reference::multiply(w, {x.data(), 1, x.size()}, {out.data(), 1, out.size()});
  for (std::size_t i = 0; i < bias.size(); ++i) out[i] += double{bias[i]};
  return rounded(out);
}

struct Projected {
  std::vector<float> q, k, v;
};
Projected project(const LayerWeights& w, const std::vector<float>& hidden) {
  const std::vector<float> normed = norm(hidden, w.attention_norm);
  Projected out = {product(w.q, normed, w.q_bias), product(w.k, normed, w.k_bias),
                   product(w.v, normed, w.v_bias)};
  if (!w.q_norm.empty()) out.q = norm(out.q, w.q_norm);
  if (!w.k_norm.empty()) out.k = norm(out.k, w.k_norm);
  return out;
}

void finish(const LayerWeights& w, Activation activation, const std::vector<float>& mixed,
            std::vector<float>* hidden) {
  const auto add = [&](std::vector<float> x, std::span<const float> post_norm) {
    if (!post_norm.empty()) x = norm(x, post_norm);
    for (std::size_t i = 0; i < x.size(); ++i) (*hidden)[i] += x[i];
  };
  add(product(w.output, mixed), w.attention_post_norm);
  const std::vector<float> normed = norm(*hidden, w.feed_forward_norm);
  const std::vector<float> gate = product(w.gate, normed), up = product(w.up, normed);
  std::vector<double> gated(kInner);
  (activation == Activation::silu ? reference::silu_mul : reference::gelu_mul)(
      gate.data(), up.data(), kInner, gated.data());
  add(product(w.down, rounded(gated)), w.feed_forward_post_norm);
}

class DenseLayersTest : public cuda::StreamTest {
 protected:
  // `tolerance`: of a row's root mean square.
  static void expect_near(const std::vector<float>& got, const std::vector<float>& want,
                          double tolerance, const std::string& what) {
    double squares = 0;
    for (const float x : want) squares += double{x} * double{x};
    const double bound = tolerance * std::sqrt(squares / static_cast<double>(want.size()));
    for (std::size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(got[i], want[i], bound) << what << ", column " << i;
  }

  std::vector<float> normal(std::size_t size) {
    std::normal_distribution<float> normal;
    std::vector<float> x(size);
    for (float& v : x) v = normal(random_);
    return x;
  }

  // Two layers over so many rows, of which the first and the last are looked at.
  void run(WeightType type, Layer::Extras extras, Activation activation, std::size_t rows,
           double tolerance) {
    const auto device = open_device(0);
    ASSERT_TRUE(device) << device.error().message;
    LayersShape shape;
    shape.width = kWidth;
    shape.feed_forward = kInner;
    shape.q = shape.mixed = kHeads * kDim;
    shape.k = shape.v = kKvHeads * kDim;
    shape.norm_epsilon = kEpsilon;
    shape.activation = activation;
    const auto layers = (*device)->open_layers(shape, rows);
    ASSERT_TRUE(layers) << layers.error().message;
    const Layer weights[] = {{type, extras, random_}, {type, extras, random_}};
    for (const Layer& layer : weights) ASSERT_TRUE((*layers)->add(layer.view));

    std::vector<float> hidden = normal(rows * kWidth);
    std::vector<float> q(rows * shape.q), k(rows * shape.k), v(rows * shape.v);
    ASSERT_TRUE((*layers)->write(MatView<const float>(hidden.data(), rows, kWidth)));
    const auto row_of = [](const std::vector<float>& x, std::size_t r, std::size_t cols) {
      const std::span<const float> row = std::span(x).subspan(r * cols, cols);
      return std::vector<float>(row.begin(), row.end());
    };
    std::map<std::size_t, std::vector<float>> want;
    for (const std::size_t r : {std::size_t{0}, rows - 1}) want[r] = row_of(hidden, r, kWidth);
    for (std::size_t l = 0; l < 2; ++l) {
      ASSERT_TRUE((*layers)->project(l, {q.data(), rows, shape.q}, {k.data(), rows, shape.k},
                                     {v.data(), rows, shape.v}));
      const std::vector<float> mixed = normal(rows * shape.mixed);
      for (auto& [r, of_row] : want) {
        const std::string what = std::string(info(type).name) + ", layer " + std::to_string(l) +
                                 ", row " + std::to_string(r);
        const Projected projected = project(weights[l].view, of_row);
        expect_near(row_of(q, r, shape.q), projected.q, tolerance, what + ", queries");
        expect_near(row_of(k, r, shape.k), projected.k, tolerance, what + ", keys");
        expect_near(row_of(v, r, shape.v), projected.v, tolerance, what + ", values");
        finish(weights[l].view, activation, row_of(mixed, r, shape.mixed), &of_row);
      }
      ASSERT_TRUE((*layers)->finish(l, MatView<const float>(mixed.data(), rows, shape.mixed)));
      ASSERT_TRUE((*layers)->wait());  // `mixed` goes
    }
    ASSERT_TRUE((*layers)->read({hidden.data(), rows, kWidth}));
    for (const auto& [r, of_row] : want)
      expect_near(row_of(hidden, r, kWidth), of_row, tolerance, "hidden row " + std::to_string(r));
  }

  std::mt19937 random_{31};
};

// A product of 512 terms is off by some 20 roundings of its size at most, and a layer is four of
// them, one after the other.
constexpr double kFloats = 2e-5;
// Operands are rounded to 8 bits: each product is off by 2^-8 of the root of its terms' squares.
constexpr double kRounded = 0.1;

TEST_F(DenseLayersTest, OfFewRows) {
  for (const std::size_t rows : {std::size_t{1}, std::size_t{3}, kFewRows}) {
    run(WeightType::q4_k, Layer::Extras::none, Activation::silu, rows, kFloats);
    run(WeightType::q8_0, Layer::Extras::biases, Activation::silu, rows, kFloats);
    run(WeightType::q6_k, Layer::Extras::norms, Activation::gelu, rows, kFloats);
  }
}

TEST_F(DenseLayersTest, OfManyRows) {
  run(WeightType::q4_k, Layer::Extras::none, Activation::silu, kFewRows + 1, kRounded);
  run(WeightType::bf16, Layer::Extras::biases, Activation::silu, kFewRows + 1, kRounded);
  run(WeightType::q6_k, Layer::Extras::norms, Activation::gelu, 150, kRounded);
}

// Whoever else is there, and however many: a row's logits are those that it has alone.
TEST_F(DenseLayersTest, MakesLogits) {
  const auto device = open_device(0);
  ASSERT_TRUE(device) << device.error().message;
  constexpr std::size_t kVocabulary = 150;
  LayersShape shape;
  shape.width = kWidth;
  shape.norm_epsilon = kEpsilon;
  const auto output =
      random_weights(WeightType::q4_k, kVocabulary, kWidth, Scale::ordinary, random_);
  const std::vector<float> weight = normal(kWidth);
  const HeadWeights head{weight, output.view};
  for (const std::size_t rows : {std::size_t{1}, kFewRows, 2 * kFewRows + 1}) {
    const auto layers = (*device)->open_layers(shape, rows);
    ASSERT_TRUE(layers) << layers.error().message;
    ASSERT_TRUE((*layers)->add(head));
    std::vector<float> hidden = normal(rows * kWidth), after(hidden.size());
    std::vector<float> logits(rows * kVocabulary), alone(kVocabulary);
    ASSERT_TRUE((*layers)->write(MatView<const float>(hidden.data(), rows, kWidth)));
    ASSERT_TRUE((*layers)->head({logits.data(), rows, kVocabulary}));
    ASSERT_TRUE((*layers)->read({after.data(), rows, kWidth}));
    EXPECT_EQ(after, hidden);
    for (std::size_t r = 0; r < rows; ++r) {
      const std::vector<float> row(hidden.begin() + static_cast<std::ptrdiff_t>(r * kWidth),
                                   hidden.begin() + static_cast<std::ptrdiff_t>((r + 1) * kWidth));
      const std::vector<float> got(
          logits.begin() + static_cast<std::ptrdiff_t>(r * kVocabulary),
          logits.begin() + static_cast<std::ptrdiff_t>((r + 1) * kVocabulary));
      expect_near(got, product(output.view, norm(row, weight)), kFloats, "logits");
      ASSERT_TRUE((*layers)->write(MatView<const float>(row.data(), 1, kWidth)));
      ASSERT_TRUE((*layers)->head({alone.data(), 1, kVocabulary}));
      EXPECT_EQ(got, alone);
    }
  }
}

// Rows that are put there take the place of those before, fewer or more; what they were is
// nowhere in what comes back.
TEST_F(DenseLayersTest, KeepsTheRowsThatWerePutThereLast) {
  const auto device = open_device(0);
  ASSERT_TRUE(device) << device.error().message;
  LayersShape shape;
  shape.width = 64;
  const auto layers = (*device)->open_layers(shape, 5);
  ASSERT_TRUE(layers) << layers.error().message;
  for (const std::size_t rows : {5u, 2u, 4u}) {
    const std::vector<float> given = normal(rows * 64);
    std::vector<float> back(rows * 64);
    ASSERT_TRUE((*layers)->write(MatView<const float>(given.data(), rows, 64)));
    ASSERT_TRUE((*layers)->read({back.data(), rows, 64}));
    EXPECT_EQ(back, given);
  }
}

TEST_F(DenseLayersTest, TakesWhatWasPlanned) {
  const auto device = open_device(0);
  ASSERT_TRUE(device) << device.error().message;
  LayersShape shape;
  shape.width = kWidth;
  shape.q = shape.mixed = kHeads * kDim;
  shape.k = shape.v = kKvHeads * kDim;
  shape.feed_forward = kInner;
  const Layer layer(WeightType::q5_k, Layer::Extras::norms, random_);
  const std::uint64_t planned = layer_bytes(layer.view) + layers_work_bytes(shape, 16);
  const std::uint64_t before = *(*device)->free_bytes();
  {
    const auto layers = (*device)->open_layers(shape, 16);
    ASSERT_TRUE(layers) << layers.error().message;
    ASSERT_TRUE((*layers)->add(layer.view));
    EXPECT_GE(before - *(*device)->free_bytes(), planned);
    EXPECT_GT(planned, layer.view.q.bytes() * 3);
  }
  EXPECT_EQ(*(*device)->free_bytes(), before);
}

TEST_F(DenseLayersTest, SaysThatMemoryIsShort) {
  const auto device = open_device(0);
  ASSERT_TRUE(device) << device.error().message;
  LayersShape shape;
  shape.width = *(*device)->free_bytes();
  const auto layers = (*device)->open_layers(shape, 1);
  ASSERT_FALSE(layers);
  EXPECT_EQ(layers.error().code, ErrorCode::exhausted);
}

}  // namespace
}  // namespace thermocline
