// Random coded weights of any type, for the tests of what reads them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/base/half.h"
#include "kernels/format/weight.h"

namespace thermocline::testing {

enum class Scale { ordinary, extreme };  // near 1/64, or any finite f16

struct Weights {
  std::vector<std::byte> bytes;
  WeightView view;
};

inline f16 random_half(Scale scale, std::mt19937& rng) {
  if (scale == Scale::extreme)
    return {static_cast<std::uint16_t>(rng() % 0x7c00 | (rng() % 2) << 15)};
  const float magnitude = std::uniform_real_distribution<float>(0.005f, 0.03f)(rng);
  return to_f16(rng() % 2 == 0 ? magnitude : -magnitude);
}

// Bytes of any value, and finite scales where the format has them.
inline Weights random_weights(WeightType type, std::size_t rows, std::size_t cols, Scale scale,
                              std::mt19937& rng) {
  Weights w;
  w.view = {type, nullptr, rows, cols};
  w.bytes.resize(w.view.bytes());
  w.view.data = w.bytes.data();
  for (std::byte& b : w.bytes) b = static_cast<std::byte>(rng() & 255);
  const auto put = [&](std::size_t at, auto value) {
    std::memcpy(w.bytes.data() + at, &value, sizeof value);
  };
  const WeightTypeInfo& t = info(type);
  std::normal_distribution<float> normal;
  const auto real = [&] {
    const int exponent = scale == Scale::extreme ? static_cast<int>(rng() % 60) - 30 : 0;
    return std::ldexp(normal(rng), exponent);
  };
  for (std::size_t at = 0; at < w.bytes.size(); at += t.block_bytes) switch (type) {
      case WeightType::f32:
        put(at, real());
        break;
      case WeightType::bf16:
        put(at, to_bf16(real()));
        break;
      case WeightType::q6_k:
        put(at + 208, random_half(scale, rng));
        break;
      case WeightType::q4_1:
      case WeightType::q5_1:
      case WeightType::q4_k:
      case WeightType::q5_k:
        put(at + 2, random_half(scale, rng));
        [[fallthrough]];
      default:
        put(at, random_half(scale, rng));
    }
  return w;
}

}  // namespace thermocline::testing
