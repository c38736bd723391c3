#include "kernels/reference.h"

#include <cmath>
#include <numbers>
#include <vector>

#include "kernels/format/visit.h"

namespace thermocline::reference {

void dequantize(WeightView w, std::size_t r, float* out) {
  visit_format(w.type, [&](auto format) {
    using Format = decltype(format);
    if constexpr (requires { typename Format::Block; }) {
      constexpr std::size_t kValues = Format::kGroups * 32;
      const auto* block = reinterpret_cast<const typename Format::Block*>(w.row(r));
      for (std::size_t i = 0; i < w.cols; ++i)
        out[i] = Format::value(block[i / kValues], static_cast<int>(i % kValues));
    } else {
      const auto* value = reinterpret_cast<const typename Format::Value*>(w.row(r));
      for (std::size_t i = 0; i < w.cols; ++i) out[i] = Format::value(value[i]);
    }
  });
}

void multiply(WeightView w, MatView<const float> x, MatView<double> out) {
  std::vector<float> row(w.cols);
  for (std::size_t r = 0; r < w.rows; ++r) {
    dequantize(w, r, row.data());
    for (std::size_t t = 0; t < x.rows(); ++t) {
      double sum = 0.0;
      for (std::size_t c = 0; c < w.cols; ++c) sum += double{row[c]} * double{x.row(t)[c]};
      out.row(t)[r] = sum;
    }
  }
}

void rms_norm(const float* x, const float* weight, std::size_t n, float epsilon, double* out) {
  double squares = 0.0;
  for (std::size_t i = 0; i < n; ++i) squares += double{x[i]} * double{x[i]};
  const double root = std::sqrt(squares / static_cast<double>(n) + double{epsilon});
  for (std::size_t i = 0; i < n; ++i) out[i] = double{x[i]} / root * double{weight[i]};
}

void rope(const float* cosine, const float* sine, std::size_t pairs, RopePairs layout,
          const float* x, double* out) {
  for (std::size_t i = 0; i < pairs; ++i) {
    const std::size_t first = layout == RopePairs::neighbours ? 2 * i : i;
    const std::size_t second = layout == RopePairs::neighbours ? 2 * i + 1 : i + pairs;
    const double a = x[first], b = x[second], c = cosine[i], s = sine[i];
    out[first] = a * c - b * s;
    out[second] = a * s + b * c;
  }
}

void silu_mul(const float* gate, const float* up, std::size_t n, double* out) {
  for (std::size_t i = 0; i < n; ++i) {
    const double x = gate[i];
    out[i] = x / (1.0 + std::exp(-x)) * double{up[i]};
  }
}

void gelu_mul(const float* gate, const float* up, std::size_t n, double* out) {
  for (std::size_t i = 0; i < n; ++i) {
    const double x = gate[i];
    const double inner = std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x);
    // 1 + tanh(v) = 2 / (1 + e^-2v), which keeps its digits where tanh is near -1.
    out[i] = x / (1.0 + std::exp(-2.0 * inner)) * double{up[i]};
  }
}

}  // namespace thermocline::reference
