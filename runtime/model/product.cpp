#include "runtime/model/product.h"

#include <algorithm>

namespace thermocline {
namespace {

// Weights that one task multiplies: about 5 us of decode, so a region of a small model's layer
// still splits, and what a task costs does not show.
constexpr std::size_t kTaskWeights = std::size_t{1} << 16;

std::size_t tile_rows(std::size_t cols) {
  return std::clamp<std::size_t>(round_up(kTaskWeights / cols, 8), 8, 512);
}

}  // namespace

Result<ProductScratch> ProductScratch::create(const Machine&, std::size_t rows, std::size_t cols) {
  ProductScratch scratch;
  const std::size_t few = std::min(rows, kFewRows);
  const std::size_t values = round_up(few * cols * sizeof(std::int16_t), 64);
  const std::size_t scales = round_up(few * (cols / kActivationBlock) * sizeof(float), 64);
  TL_TRY_ASSIGN(scratch.memory_, Buffer::create(values + 2 * scales));
  std::byte* memory = scratch.memory_.data();
  scratch.rounded_.value = reinterpret_cast<std::int16_t*>(memory);
  scratch.rounded_.scale = reinterpret_cast<float*>(memory + values);
  scratch.rounded_.sum = reinterpret_cast<float*>(memory + values + scales);
  return scratch;
}

void ProductScratch::multiply(const Machine& machine, MatView<const float> x,
                              std::span<const Product> products) {
  for (std::size_t at = 0; at < x.rows(); at += kFewRows) {
    const std::size_t n = std::min(kFewRows, x.rows() - at);
    rounded_.real = x.rows_from(at, n);
    machine.cpu->matvec.round_activations(rounded_);
    for (const Product& p : products) {
      const MatView<float> out = p.out.rows_from(at, n);
      machine.workers->parallel(p.weight.rows, tile_rows(p.weight.cols),
                                [&](std::size_t first, std::size_t last) {
        machine.cpu->matvec.multiply(p.weight, first, last, rounded_, out);
        if (!p.bias.empty())
          for (std::size_t t = 0; t < n; ++t)
            for (std::size_t r = first; r < last; ++r) out[t][r] += p.bias[r];
      });
    }
  }
}

void ProductScratch::multiply_gated(const Machine& machine, MatView<const float> x,
                                    WeightView gate, WeightView up, Activation activation,
                                    MatView<float> up_rows, MatView<float> out) {
  const Product both[] = {{gate, {}, out}, {up, {}, up_rows}};
  multiply(machine, x, both);
  const DenseOps& dense = machine.cpu->dense;
  const auto act = activation == Activation::silu ? dense.silu_mul : dense.gelu_mul;
  for (std::size_t t = 0; t < x.rows(); ++t) act(out.row(t), up_rows.row(t), out.cols(), out.row(t));
}

}  // namespace thermocline
