// MatvecOps for any Vec.
//
// A tile is R weight rows times T activation rows: R hides latency where T is 1, T shares the
// unpacking of a weight. Whatever the tile, a result is made by the same operations in the same
// order, so its bits are the same.
//
// Several rows at once hide from the hardware that memory is read from one end to the other (half
// the speed on Zen 3), so a tile asks for the bytes of the next one, in order.
#pragma once

#include <cfloat>
#include <cstddef>

#include "kernels/cpu/vec.h"
#include "kernels/format/visit.h"
#include "kernels/matvec.h"

namespace thermocline {
namespace {

// --- Activations ---------------------------------------------------------------------------------

// One block: 32 floats to 16 bits.
template <typename V>
inline void round_block(const float* x, std::int16_t* value, float* scale, float* sum) {
  using F = typename V::F;
  constexpr float kLargest = 32767.0f;
  constexpr float kTiny = 0x1p-100f;  // below it, kLargest / magnitude could overflow

  F magnitude = V::zero(), poison = V::zero();
  for (int i = 0; i < 32; i += V::lanes) {
    const F v = V::load(x + i);
    magnitude = V::max(magnitude, V::max(v, V::sub(V::zero(), v)));
    poison = V::fma(v, V::zero(), poison);  // 0, or NaN once a value is not finite
  }
  const float largest = V::largest(magnitude), wrong = V::sum(poison);
  if (wrong != 0.0f || largest < kTiny) {
    for (int i = 0; i < 32; ++i) value[i] = 0;
    *scale = *sum = wrong;
    return;
  }
  const F by = V::set(kLargest / largest);
  std::int16_t in_order[32];
  F total = V::zero();  // of integers below 2^20: exact
  for (int i = 0; i < 32; i += V::lanes) {
    const F rounded = V::round(V::mul(V::load(x + i), by));
    V::store_i16(in_order + i, rounded);
    total = V::add(total, rounded);
  }
  for (int i = 0; i < 16; ++i) {
    value[i] = in_order[2 * i];
    value[16 + i] = in_order[2 * i + 1];
  }
  *scale = largest / kLargest;
  *sum = *scale * V::sum(total);
}

template <typename V>
void round_activations(const Activations& x) {
  for (std::size_t t = 0; t < x.rows(); ++t)
    for (std::size_t b = 0; b < x.blocks(); ++b) {
      const std::size_t at = t * x.blocks() + b;
      round_block<V>(x.real.row(t) + b * 32, x.value + at * 32, x.scale + at, x.sum + at);
    }
}

// --- Weights of blocks ---------------------------------------------------------------------------

inline void prefetch(const std::byte* p, std::size_t bytes) {
  constexpr std::size_t kLineBytes = 64;
  for (std::size_t at = 0; at < bytes; at += kLineBytes) __builtin_prefetch(p + at);
}

// Not inlined, for the compiler's sake: all of them in one function take it minutes.
template <typename V, typename Format, int R, int T>
[[gnu::noinline]] void multiply_tile(const WeightView& w, std::size_t r, const Activations& x,
                                     std::size_t t, const MatView<float>& out) {
  using F = typename V::F;
  using I = typename V::I;
  using Block = typename Format::Block;
  constexpr int kWords = kRegisters<V>;
  constexpr int kGroups = Format::kGroups;

  const std::size_t blocks = w.cols / (kGroups * 32), stride = w.row_bytes();
  const Block* row = reinterpret_cast<const Block*>(w.data + r * stride);
  const auto block_of = [&](int i, std::size_t b) -> const Block& {
    return *reinterpret_cast<const Block*>(reinterpret_cast<const std::byte*>(row + b) +
                                           static_cast<std::size_t>(i) * stride);
  };
  // The loops over R and T are unrolled by force: only then are these registers.
  F acc[R][T];
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < T; ++j) acc[i][j] = V::zero();

  const std::size_t x_groups = x.blocks();
  const std::int16_t* value = x.value + t * x_groups * 32;
  const float* scale = x.scale + t * x_groups;
  const float* sum = x.sum + t * x_groups;
  const std::byte* next = w.data + (r + R) * stride;
  for (std::size_t b = 0; b < blocks; ++b, next += R * sizeof(Block)) {
    prefetch(next, R * sizeof(Block));
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
      const Block& block = block_of(i, b);
      const Scales<V, kGroups> by = Format::template scales<V>(block);
#pragma GCC unroll 8
      for (int g = 0; g < kGroups; ++g) {
        I word[kWords];
        Format::template words<V>(block, g, word);
        const std::size_t at = b * kGroups + static_cast<std::size_t>(g);
#pragma GCC unroll 4
        for (int j = 0; j < T; ++j) {
          const std::size_t xt = static_cast<std::size_t>(j) * x_groups + at;
          I dot = V::madd(word[0], V::load_i16(value + xt * 32));
          for (int k = 1; k < kWords; ++k)
            dot = V::add32(dot, V::madd(word[k], V::load_i16(value + xt * 32 + 2 * V::lanes * k)));
          const F step = V::mul(by.scale[g], V::set(scale[xt]));
          acc[i][j] = V::fma(V::to_float(dot), step, acc[i][j]);
          if constexpr (Format::kOffset)  // in every lane, so each takes its share
            acc[i][j] = V::fma(by.offset[g], V::set(sum[xt] * (1.0f / V::lanes)), acc[i][j]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < T; ++j)
      out.row(t + static_cast<std::size_t>(j))[r + static_cast<std::size_t>(i)] = V::sum(acc[i][j]);
}

template <typename V, typename Format>
void dequantize_blocks(const std::byte* row, std::size_t cols, float* out) {
  using F = typename V::F;
  const auto* block = reinterpret_cast<const typename Format::Block*>(row);
  for (const float* end = out + cols; out != end; ++block) {
    if constexpr (requires { Format::template dequantize<V>(*block, out); }) {
      Format::template dequantize<V>(*block, out);
      out += Format::kGroups * 32;
    } else {
      const Scales<V, Format::kGroups> by = Format::template scales<V>(*block);
#pragma GCC unroll 8
      for (int g = 0; g < Format::kGroups; ++g) {
        typename V::I word[kRegisters<V>];
        Format::template words<V>(*block, g, word);
        F value[32 / V::lanes];
        V::floats(word, value);
        for (int k = 0; k < 32 / V::lanes; ++k, out += V::lanes) {
          F v = V::mul(by.scale[g], value[k]);
          if constexpr (Format::kOffset) v = V::add(v, by.offset[g]);
          V::store(out, v);
        }
      }
    }
  }
}

// --- Weights that are floats ---------------------------------------------------------------------

template <typename V, typename Format, int R, int T>
[[gnu::noinline]] void multiply_float_tile(const WeightView& w, std::size_t r, const Activations& x,
                                           std::size_t t, const MatView<float>& out) {
  using F = typename V::F;
  constexpr int kSums = V::lanes > 8 ? 2 : 4;  // of a result: additions that need not wait

  F acc[R][T][kSums];
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < T; ++j)
#pragma GCC unroll 4
      for (F& a : acc[i][j]) a = V::zero();
  const auto* row = reinterpret_cast<const typename Format::Value*>(w.data) + r * w.cols;
  constexpr std::size_t kBytes = R * kSums * V::lanes * sizeof row[0];
  const auto* next = reinterpret_cast<const std::byte*>(row + R * w.cols);
  for (std::size_t c = 0; c < w.cols; c += kSums * V::lanes, next += kBytes) {
    prefetch(next, kBytes);
#pragma GCC unroll 4
    for (int k = 0; k < kSums; ++k)
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        const std::size_t at = c + static_cast<std::size_t>(k * V::lanes);
        const F weight = V::load(row + static_cast<std::size_t>(i) * w.cols + at);
#pragma GCC unroll 4
        for (int j = 0; j < T; ++j) {
          const F value = V::load(x.real.row(t + static_cast<std::size_t>(j)) + at);
          acc[i][j][k] = V::fma(weight, value, acc[i][j][k]);
        }
      }
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < T; ++j) {
      F total = V::add(acc[i][j][0], acc[i][j][1]);
      if constexpr (kSums == 4) total = V::add(total, V::add(acc[i][j][2], acc[i][j][3]));
      out.row(t + static_cast<std::size_t>(j))[r + static_cast<std::size_t>(i)] = V::sum(total);
    }
}

template <typename V, typename Format>
void dequantize_floats(const std::byte* row, std::size_t cols, float* out) {
  const auto* value = reinterpret_cast<const typename Format::Value*>(row);
  for (std::size_t c = 0; c < cols; c += 32)
    for (std::size_t i = c; i < c + 32; i += V::lanes) V::store(out + i, V::load(value + i));
}

// --- Tiles and formats ---------------------------------------------------------------------------

// A block of one group is a few instructions that wait for each other: four rows fill the time. One
// of eight groups has more to do by itself.
template <typename Format>
constexpr int rows_of_a_tile() {
  if constexpr (requires { typename Format::Block; })
    return Format::kGroups == 1 ? 4 : 2;
  else
    return 2;
}

template <typename V, typename Format, int R, int T>
inline void multiply_one(const WeightView& w, std::size_t r, const Activations& x, std::size_t t,
                         const MatView<float>& out) {
  if constexpr (requires { typename Format::Block; })
    multiply_tile<V, Format, R, T>(w, r, x, t, out);
  else
    multiply_float_tile<V, Format, R, T>(w, r, x, t, out);
}

template <typename V, typename Format>
void multiply_format(const WeightView& w, std::size_t first, std::size_t last, const Activations& x,
                     const MatView<float>& out) {
  constexpr int kRows = rows_of_a_tile<Format>();
  std::size_t t = 0;
  for (; t + 4 <= x.rows(); t += 4)
    for (std::size_t r = first; r < last; ++r) multiply_one<V, Format, 1, 4>(w, r, x, t, out);
  for (; t < x.rows(); ++t) {
    std::size_t r = first;
    for (; r + kRows <= last; r += kRows) multiply_one<V, Format, kRows, 1>(w, r, x, t, out);
    for (; r < last; ++r) multiply_one<V, Format, 1, 1>(w, r, x, t, out);
  }
}

template <typename V>
void multiply(WeightView w, std::size_t first, std::size_t last, const Activations& x,
              MatView<float> out) {
  visit_format(w.type,
               [&](auto format) { multiply_format<V, decltype(format)>(w, first, last, x, out); });
}

template <typename V>
void dequantize(WeightView w, std::size_t r, float* out) {
  visit_format(w.type, [&](auto format) {
    using Format = decltype(format);
    if constexpr (requires { typename Format::Block; })
      dequantize_blocks<V, Format>(w.row(r), w.cols, out);
    else
      dequantize_floats<V, Format>(w.row(r), w.cols, out);
  });
}

template <typename V>
constexpr MatvecOps make_matvec() {
  return {round_activations<V>, multiply<V>, dequantize<V>};
}

}  // namespace
}  // namespace thermocline
