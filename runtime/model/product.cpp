#include "runtime/model/product.h"

#include <algorithm>

namespace thermocline {
namespace {

// Weights that one task of decode multiplies: about 5 us, so that a small model's layer still
// splits and what a task costs does not show.
constexpr std::size_t kTaskWeights = std::size_t{1} << 16;

std::size_t tile_rows(std::size_t cols) {
  return std::clamp<std::size_t>(round_up(kTaskWeights / cols, 8), 8, 512);
}
std::size_t tiles(const WeightView& w) {
  const std::size_t rows = tile_rows(w.cols);
  return (w.rows + rows - 1) / rows;
}

void add_bias(std::span<const float> bias, std::size_t first, std::size_t last,
              MatView<float> out) {
  if (bias.empty()) return;
  for (std::size_t t = 0; t < out.rows(); ++t)
    for (std::size_t r = first; r < last; ++r) out.row(t)[r] += bias[r];
}

auto function_of(Activation activation, const DenseOps& dense) {
  return activation == Activation::silu ? dense.silu_mul : dense.gelu_mul;
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

const Activations& ProductScratch::round(const Machine& machine, MatView<const float> x) {
  rounded_.real = x;
  machine.cpu->matvec.round_activations(rounded_);
  return rounded_;
}

void ProductScratch::multiply(const Machine& machine, MatView<const float> x,
                              std::span<const Product> products) {
  const Activations& rounded = round(machine, x);
  std::size_t count = 0;
  for (const Product& p : products) count += tiles(p.weight);
  machine.workers->parallel(count, 1, [&](std::size_t first_tile, std::size_t last_tile) {
    std::size_t base = 0;
    for (const Product& p : products) {
      const std::size_t rows = tile_rows(p.weight.cols), end = base + tiles(p.weight);
      const std::size_t from = std::max(first_tile, base), to = std::min(last_tile, end);
      if (from < to) {
        const std::size_t first = (from - base) * rows;
        const std::size_t last = std::min((to - base) * rows, p.weight.rows);
        machine.cpu->matvec.multiply(p.weight, first, last, rounded, p.out);
        add_bias(p.bias, first, last, p.out);
      }
      base = end;
    }
  });
}

void ProductScratch::multiply_gated(const Machine& machine, MatView<const float> x,
                                    WeightView gate, WeightView up, Activation activation,
                                    MatView<float> up_rows, MatView<float> out) {
  const Activations& rounded = round(machine, x);
  const auto act = function_of(activation, machine.cpu->dense);
  machine.workers->parallel(tiles(gate), 1, [&](std::size_t first_tile, std::size_t last_tile) {
    const std::size_t rows = tile_rows(gate.cols);
    const std::size_t first = first_tile * rows, last = std::min(last_tile * rows, gate.rows);
    machine.cpu->matvec.multiply(gate, first, last, rounded, out);
    machine.cpu->matvec.multiply(up, first, last, rounded, up_rows);
    for (std::size_t t = 0; t < x.rows(); ++t)
      act(out.row(t) + first, up_rows.row(t) + first, last - first, out.row(t) + first);
  });
}

}  // namespace thermocline
