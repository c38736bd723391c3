// Coded weights times a few activation rows: decode's dense work.
//
// Activations are rounded to 16 bits with a scale for each 32 values, so a product's error (about
// 1e-5 of its terms) is far below what 8-bit activations cost, and the inner loop stays integer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/view.h"
#include "kernels/format/weight.h"

namespace thermocline {

inline constexpr std::size_t kActivationBlock = 32;

// `rows` activation rows of `cols` values (a multiple of 32), rounded to 16 bits. Views of memory
// that the caller owns: value [rows][cols]; scale and sum [rows][cols / 32], where
// x ~ value * scale, and sum is the block's sum of value * scale (for types with an offset).
struct Activations {
  std::int16_t* value = nullptr;
  float* scale = nullptr;
  float* sum = nullptr;
  std::size_t rows = 0, cols = 0;

  std::size_t blocks() const { return cols / kActivationBlock; }
};

struct MatvecOps {
  // x [rows][cols] -> out; rows and cols are out's.
  void (*round_activations)(MatView<const float> x, Activations out);
  // out[t][r] = dot(w row r, x row t) for first <= r < last; out is [x.rows][w.rows]. A row's bits
  // do not depend on first, last or the number of activation rows.
  void (*multiply)(WeightView w, std::size_t first, std::size_t last, const Activations& x,
                   MatView<float> out);
  // Row r of w as floats: bit-identical to the file format's definition. out holds w.cols.
  void (*dequantize)(WeightView w, std::size_t r, float* out);
};

}  // namespace thermocline
