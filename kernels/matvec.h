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

// At most so many rows are multiplied as decode's rows are, each as it would be alone, by whichever
// processor: equal to kMaxStepRows.
inline constexpr std::size_t kFewRows = 16;

// Activation rows (`real`, [rows][cols], cols a multiple of 32) and their 16-bit rounding. Views of
// memory that the caller owns: value [rows][cols]; scale and sum [rows][cols / 32], where
// real ~ value * scale, and sum is the block's sum of value * scale (for types with an offset).
// |value| <= 32767. In a block of 32 the values of even number come first, then those of odd
// number: the order in which packed weights unpack the fastest (kernels/cpu/vec.h). A block whose
// values are all below 2^-100 rounds to zeros; one with an infinity or a NaN gets a NaN for scale
// and sum, so that no product hides it.
struct Activations {
  MatView<const float> real;
  std::int16_t* value = nullptr;
  float* scale = nullptr;
  float* sum = nullptr;

  std::size_t rows() const { return real.rows(); }
  std::size_t cols() const { return real.cols(); }
  std::size_t blocks() const { return cols() / kActivationBlock; }
};

struct MatvecOps {
  // Fills value, scale and sum from real.
  void (*round_activations)(const Activations& x);
  // out[t][r] = dot(w row r, x row t) for first <= r < last; out is [x.rows()][w.rows]. Weights
  // that are floats meet `real`, the others the rounded values. The bits of a result depend on its
  // two rows alone, not on first, last or the number of activation rows.
  void (*multiply)(WeightView w, std::size_t first, std::size_t last, const Activations& x,
                   MatView<float> out);
  // Row r of w as floats: bit-identical to the file format's definition. out holds w.cols.
  void (*dequantize)(WeightView w, std::size_t r, float* out);
};

}  // namespace thermocline
