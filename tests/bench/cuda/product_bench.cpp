#include "tests/bench/cuda/product_bench.h"

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/product.h"
#include "kernels/matvec.h"
#include "kernels/reference.h"
#include "tests/unit/kernels/weights.h"

namespace thermocline::cuda {
namespace {

constexpr WeightType kTypes[] = {WeightType::bf16, WeightType::q8_0, WeightType::q4_k,
                                 WeightType::q4_1};
constexpr std::size_t kPiece = 64;  // rows of weights, over and over

struct Matrix {
  const char* name;
  std::size_t rows, cols;
};

// Weights of one type, with as many rows of floats before and after them.
struct Product {
  thermocline::testing::Weights piece;
  Memory<std::byte> weights;
  Memory<float> from, to;
  WeightView view;

  static Result<Product> create(WeightType type, const Matrix& matrix, std::size_t vectors) {
    std::mt19937 random(3);
    Product made;
    made.piece = thermocline::testing::random_weights(
        type, kPiece, matrix.cols, thermocline::testing::Scale::ordinary, random);
    made.view = {type, nullptr, matrix.rows, matrix.cols};
    TL_TRY_ASSIGN(made.weights, Memory<std::byte>::create(Where::device, made.view.bytes()));
    for (std::size_t at = 0; at < made.weights.bytes(); at += made.piece.bytes.size())
      TL_TRY(check(cudaMemcpy(made.weights.data() + at, made.piece.bytes.data(),
                              std::min(made.piece.bytes.size(), made.weights.bytes() - at),
                              cudaMemcpyDefault),
                   "filling weights"));
    made.view.data = made.weights.data();
    std::vector<float> rows(vectors * matrix.cols);
    for (float& x : rows) x = std::normal_distribution<float>()(random);
    TL_TRY_ASSIGN(made.from, Memory<float>::of(Where::device, rows));
    TL_TRY_ASSIGN(made.to, Memory<float>::create(Where::device, vectors * matrix.rows));
    return made;
  }
  std::size_t vectors() const { return from.count() / view.cols; }

  Status queue(Stream& stream) const {
    return multiply(stream, view, MatView<const float>(from.data(), vectors(), view.cols),
                    MatView<float>(to.data(), vectors(), view.rows));
  }

  // The first and the last row of each side, whatever order the sums were made in.
  Status check_answer() const {
    TL_TRY_ASSIGN(const auto rows, from.copy());
    TL_TRY_ASSIGN(const auto answer, to.copy());
    std::vector<float> weight(view.cols);
    // Of many rows operands are rounded, and tensor cores may cut off what others round.
    const bool rounded = vectors() > kFewRows;
    const auto operand = [&](float value) {
      return rounded ? double{to_float(to_bf16(value))} : double{value};
    };
    const double roundings = (rounded ? 2 : 1) * static_cast<double>(view.cols) * 0x1p-24;
    for (const std::size_t r : {std::size_t{0}, view.rows - 1}) {
      reference::dequantize(piece.view, r % kPiece, weight.data());
      for (const std::size_t t : {std::size_t{0}, vectors() - 1}) {
        double want = 0, terms = 0;
        for (std::size_t i = 0; i < view.cols; ++i) {
          const double term = operand(weight[i]) * operand(rows[t * view.cols + i]);
          want += term;
          terms += std::abs(term);
        }
        if (!(std::abs(answer[t * view.rows + r] - want) <= roundings * terms))
          return fail(ErrorCode::corrupt, "a product of ", info(view.type).name, " weights is ",
                      answer[t * view.rows + r], " in place of ", want);
      }
    }
    return {};
  }
};

}  // namespace

Status bench_products(Stream& stream, const Limits& limits, std::uint32_t width,
                      std::span<const std::uint32_t> vectors, int rounds) {
  const Matrix matrices[] = {{"attention", width, width},
                             {"up", std::size_t{width} * 7 / 2, width},
                             {"down", width, std::size_t{width} * 7 / 2}};
  std::printf(
      "| weights | type | rows | us | HBM | TFLOP/s |\n"
      "| --- | --- | --- | --- | --- | --- |\n");
  for (const Matrix& matrix : matrices)
    for (const WeightType type : kTypes)
      for (const std::uint32_t count : vectors) {
        TL_TRY_ASSIGN(const Product product, Product::create(type, matrix, count));
        TL_TRY_ASSIGN(const double us, time_us(
                                           stream, rounds, [] { return Status(); },
                                           [&] { return product.queue(stream); }));
        TL_TRY(product.check_answer());
        const auto bytes = static_cast<double>(product.weights.bytes() + product.from.bytes() +
                                               product.to.bytes());
        const double operations = 2.0 * static_cast<double>(matrix.rows * matrix.cols) * count;
        std::printf("| %s %zu x %zu | %s | %u | %.1f | %.0f %% | %.1f |\n", matrix.name,
                    matrix.rows, matrix.cols, std::string(info(type).name).c_str(), count, us,
                    100 * bytes / (us * 1e-6) / limits.device, operations / us * 1e-6);
        std::fflush(stdout);
      }
  return {};
}

}  // namespace thermocline::cuda
