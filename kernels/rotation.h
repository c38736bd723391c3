// The angles of a rotary embedding at any position, without a table: what keys that are kept before
// the embedding are rotated by when they are rebuilt.
//
// A turn is counted in 2^-64 of a whole one, so multiplying by a position is exact, and forgets
// whole turns by itself. What is left is rounded to 2^-32 of a turn, and cosine and sine of that
// come from polynomials in plain float arithmetic: within 2e-7 of the exact ones at every position
// below 2^32, by the same bits on every processor.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/base/head_size.h"
#include "kernels/base/rope_pairs.h"

namespace thermocline {

struct Rotation {
  RopePairs layout = RopePairs::halves;
  float magnitude = 1.0f;  // cosine and sine times this; keys are that much longer
  std::uint32_t pairs = 0;
  std::uint64_t step[kMaxHeadSize / 2] = {};  // of a turn, from one position to the next

  // Angle of pair i at position p: p * inverse_frequency[i], which are finite, at most
  // kMaxHeadSize / 2 of them.
  static Rotation of(std::span<const float> inverse_frequency, RopePairs layout, float magnitude);
};

namespace {  // compiled once for each instruction set

// Cosine and sine of so many steps, times the magnitude. A device's to call as well.
struct Angle {
  float cosine = 1.0f, sine = 0.0f;
};
constexpr Angle angle_at(std::uint64_t step, std::uint32_t position, float magnitude) {
  constexpr float kRadians = 1.46291807926715968e-9f;  // of 2^-32 turns
  const auto phase = static_cast<std::uint32_t>((step * position + (std::uint64_t{1} << 31)) >> 32);
  // The nearest quarter, and what is beside it: an eighth of a turn at most.
  const std::uint32_t quarter = (phase + (1u << 29)) >> 30;
  const float x = kRadians * static_cast<float>(static_cast<std::int32_t>(phase - (quarter << 30)));
  const float z = x * x;
  const float s = x + x * z * (-1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f));
  const float c =
      1.0f - 0.5f * z +
      z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
  const bool odd = (quarter & 1) != 0;
  const float along = odd ? s : c, across = odd ? c : s;
  const float flip_along = ((quarter ^ quarter >> 1) & 1) != 0 ? -1.0f : 1.0f;
  const float flip_across = (quarter & 2) != 0 ? -1.0f : 1.0f;
  return {along * flip_along * magnitude, across * flip_across * magnitude};
}

// Of all pairs, [pairs].
inline void angles_at(const Rotation& rotation, std::uint32_t position, float* cosine,
                      float* sine) {
  for (std::uint32_t i = 0; i < rotation.pairs; ++i) {
    const Angle angle = angle_at(rotation.step[i], position, rotation.magnitude);
    cosine[i] = angle.cosine;
    sine[i] = angle.sine;
  }
}

// A head's row as the embedding leaves it at `position`, in place. A loop for each layout, since
// what attention reads is rotated row by row: the compiler makes vectors of each, of both in one it
// does not.
inline void rotate_to(const Rotation& rotation, std::uint32_t position, float* row) {
  alignas(64) float cosine[kMaxHeadSize / 2], sine[kMaxHeadSize / 2];
  angles_at(rotation, position, cosine, sine);
  if (rotation.layout == RopePairs::halves) {
    for (std::uint32_t i = 0; i < rotation.pairs; ++i) {
      const float a = row[i], b = row[rotation.pairs + i];
      row[i] = a * cosine[i] - b * sine[i];
      row[rotation.pairs + i] = a * sine[i] + b * cosine[i];
    }
  } else {
    for (std::uint32_t i = 0; i < rotation.pairs; ++i) {
      const float a = row[2 * i], b = row[2 * i + 1];
      row[2 * i] = a * cosine[i] - b * sine[i];
      row[2 * i + 1] = a * sine[i] + b * cosine[i];
    }
  }
}

// And as it was before.
inline void rotate_back(const Rotation& rotation, std::uint32_t position, float* row) {
  alignas(64) float cosine[kMaxHeadSize / 2], sine[kMaxHeadSize / 2];
  angles_at(rotation, position, cosine, sine);
  const float by = 1.0f / (rotation.magnitude * rotation.magnitude);
  const bool halves = rotation.layout == RopePairs::halves;
  const std::size_t stride = halves ? 1 : 2, other = halves ? rotation.pairs : 1;
  for (std::uint32_t i = 0; i < rotation.pairs; ++i) {
    float* pair = row + stride * i;
    const float a = pair[0], b = pair[other];
    pair[0] = (a * cosine[i] + b * sine[i]) * by;
    pair[other] = (b * cosine[i] - a * sine[i]) * by;
  }
}

}  // namespace
}  // namespace thermocline
