#include "kernels/rotation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace thermocline {
namespace {

std::vector<float> frequencies(std::uint32_t pairs, double base) {
  std::vector<float> frequency(pairs);
  for (std::uint32_t i = 0; i < pairs; ++i)
    frequency[i] = static_cast<float>(std::pow(base, -static_cast<double>(i) / pairs));
  return frequency;
}

TEST(Rotation, HasTheAnglesOfDoublePrecisionAtAnyPosition) {
  std::mt19937 random(1);
  for (const double base : {1e4, 1e6})
    for (const float magnitude : {1.0f, 1.37f}) {
      const std::vector<float> frequency = frequencies(64, base);
      const Rotation rotation = Rotation::of(frequency, RopePairs::halves, magnitude);
      std::vector<std::uint32_t> positions = {0, 1, 2, 1'000'000, 0xffffffffu};
      for (int i = 0; i < 2000; ++i) positions.push_back(random() % 1'100'000);
      for (const std::uint32_t position : positions) {
        float cosine[64], sine[64];
        angles_at(rotation, position, cosine, sine);
        for (std::size_t i = 0; i < 64; ++i) {
          const double angle = static_cast<double>(position) * frequency[i];
          // Beyond a million what a double of 2 pi lacks shows as well.
          const double bound = magnitude * (position > 2'000'000 ? 1e-6 : 2e-7);
          ASSERT_NEAR(cosine[i], magnitude * std::cos(angle), bound) << position << ", pair " << i;
          ASSERT_NEAR(sine[i], magnitude * std::sin(angle), bound) << position << ", pair " << i;
        }
      }
    }
}

TEST(Rotation, TurnsBackWhatItTurned) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (const RopePairs layout : {RopePairs::neighbours, RopePairs::halves}) {
    const Rotation rotation = Rotation::of(frequencies(24, 1e4), layout, 1.2f);
    for (int round = 0; round < 100; ++round) {
      float row[64], was[64];
      for (float& x : row) x = normal(random);
      std::copy_n(row, 64, was);
      const std::uint32_t position = random() % 1'000'000;
      rotate_to(rotation, position, row);
      const std::size_t other = layout == RopePairs::halves ? 24 : 1;
      float cosine[24], sine[24];
      angles_at(rotation, position, cosine, sine);
      EXPECT_FLOAT_EQ(row[0], was[0] * cosine[0] - was[other] * sine[0]);
      EXPECT_FLOAT_EQ(row[other], was[0] * sine[0] + was[other] * cosine[0]);
      for (std::size_t i = 48; i < 64; ++i) EXPECT_EQ(row[i], was[i]);  // are not turned
      rotate_back(rotation, position, row);
      for (std::size_t i = 0; i < 64; ++i) ASSERT_NEAR(row[i], was[i], 1e-5);
    }
  }
}

}  // namespace
}  // namespace thermocline
