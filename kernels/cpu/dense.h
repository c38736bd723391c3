// DenseOps for any Vec.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>

#include "kernels/cpu/hadamard.h"
#include "kernels/cpu/vec.h"
#include "kernels/dense.h"

namespace thermocline {
namespace {

// Calls full(i) for every whole Vec of n values and rest(i, count) for what remains, if anything.
template <typename V, typename Full, typename Rest>
inline void for_lanes(std::size_t n, const Full& full, const Rest& rest) {
  std::size_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes) full(i);
  if (i < n) rest(i, static_cast<int>(n - i));
}

template <typename V>
void rms_norm(const float* x, const float* weight, std::size_t n, float epsilon, float* out) {
  using F = typename V::F;
  F squares = V::zero();
  const auto square = [&](F v) { squares = V::fma(v, v, squares); };
  for_lanes<V>(
      n, [&](std::size_t i) { square(V::load(x + i)); },
      [&](std::size_t i, int count) { square(V::load_tail(x + i, count)); });
  const F by = V::set(1.0f / std::sqrt(V::sum(squares) / static_cast<float>(n) + epsilon));
  for_lanes<V>(
      n,
      [&](std::size_t i) {
        V::store(out + i, V::mul(V::mul(V::load(x + i), by), V::load(weight + i)));
      },
      [&](std::size_t i, int count) {
        const F scaled = V::mul(V::load_tail(x + i, count), by);
        V::store_tail(out + i, V::mul(scaled, V::load_tail(weight + i, count)), count);
      });
}

// Plain loops, here and in add and scale: the compiler makes vectors of them, and there is no sum
// whose order could change a bit.
template <typename V>
void rope(const float* cosine, const float* sine, std::size_t pairs, RopePairs layout, float* x) {
  if (layout == RopePairs::neighbours) {
    for (std::size_t i = 0; i < pairs; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cosine[i] - b * sine[i];
      x[2 * i + 1] = a * sine[i] + b * cosine[i];
    }
  } else {
    for (std::size_t i = 0; i < pairs; ++i) {
      const float a = x[i], b = x[pairs + i];
      x[i] = a * cosine[i] - b * sine[i];
      x[pairs + i] = a * sine[i] + b * cosine[i];
    }
  }
}

template <typename V>
void add(const float* x, std::size_t n, float* into) {
  for (std::size_t i = 0; i < n; ++i) into[i] += x[i];
}

template <typename V>
void scale(float by, std::size_t n, float* x) {
  for (std::size_t i = 0; i < n; ++i) x[i] *= by;
}

// x / (1 + e^-u). The power is taken of -|u|, so nothing overflows and small results keep their
// relative accuracy.
template <typename V>
inline typename V::F times_sigmoid(typename V::F x, typename V::F u) {
  using F = typename V::F;
  const F one = V::set(1.0f), minus = V::sub(V::zero(), u);
  const F power = exp_bounded<V>(V::where_negative(u, u, minus));
  return V::div(V::mul(x, V::where_negative(u, power, one)), V::add(one, power));
}

template <typename V, typename Activation>
inline void gate_mul(const float* gate, const float* up, std::size_t n, float* out,
                     const Activation& activation) {
  for_lanes<V>(
      n,
      [&](std::size_t i) {
        V::store(out + i, V::mul(activation(V::load(gate + i)), V::load(up + i)));
      },
      [&](std::size_t i, int count) {
        const auto active = activation(V::load_tail(gate + i, count));
        V::store_tail(out + i, V::mul(active, V::load_tail(up + i, count)), count);
      });
}

template <typename V>
void silu_mul(const float* gate, const float* up, std::size_t n, float* out) {
  gate_mul<V>(gate, up, n, out, [](typename V::F x) { return times_sigmoid<V>(x, x); });
}

// x / 2 * (1 + tanh(v)) = x / (1 + e^-2v), v = sqrt(2 / pi) * (x + 0.044715 x^3).
template <typename V>
void gelu_mul(const float* gate, const float* up, std::size_t n, float* out) {
  using F = typename V::F;
  gate_mul<V>(gate, up, n, out, [](F x) {
    constexpr float kLinear = 1.5957691216057308f;  // 2 * sqrt(2 / pi)
    constexpr float kCubic = kLinear * 0.044715f;
    const F slope = V::fma(V::mul(x, x), V::set(kCubic), V::set(kLinear));
    return times_sigmoid<V>(x, V::mul(x, slope));
  });
}

template <typename V>
void to_half(const float* x, std::size_t n, void* out) {
  f16* half = static_cast<f16*>(out);
  for_lanes<V>(
      n, [&](std::size_t i) { V::store(half + i, V::load(x + i)); },
      [&](std::size_t i, int count) {
        f16 rest[V::lanes];
        V::store(rest, V::load_tail(x + i, count));
        std::memcpy(half + i, rest, static_cast<std::size_t>(count) * sizeof(f16));
      });
}

template <typename V>
void to_bfloat(const float* x, std::size_t n, void* out) {
  bf16* bfloat = static_cast<bf16*>(out);
  std::size_t i = 0;
  if constexpr (requires { V::store(bfloat, V::zero()); })
    for (; i + V::lanes <= n; i += V::lanes) V::store(bfloat + i, V::load(x + i));
  for (; i < n; ++i) bfloat[i] = to_bf16(x[i]);
}

template <typename V>
void from_half(const void* x, std::size_t n, float* out) {
  const f16* half = static_cast<const f16*>(x);
  std::size_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes) V::store(out + i, V::load(half + i));
  for (; i < n; ++i) out[i] = to_float(half[i]);
}

template <typename V>
constexpr DenseOps make_dense() {
  return {rms_norm<V>, rope<V>,    add<V>,       scale<V>,     silu_mul<V>,
          gelu_mul<V>, to_half<V>, to_bfloat<V>, from_half<V>, rotate<V>};
}

}  // namespace
}  // namespace thermocline
