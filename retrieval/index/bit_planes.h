// Rows of numbers in a few bits each, for indexes that rank by rounded keys. 32 neighbouring rows
// are a group; in a group each channel has a scale of its own, since keys differ more from channel
// to channel than from row to row.
//
// Layout of a group: for each channel f16 zero, f16 step, and `bits` words of 32 bits. Bit r of
// word b is bit b of the code of row r, which stands for zero + step * code. In the last group rows
// that are not there have codes of 0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/base/half.h"

namespace thermocline {

inline constexpr std::uint32_t kPlaneRows = 32;
inline constexpr std::uint32_t kMostPlanes = 8;  // bits

constexpr std::uint64_t plane_bytes(std::uint32_t rows, std::uint32_t channels,
                                    std::uint32_t bits) {
  return std::uint64_t{(rows + kPlaneRows - 1) / kPlaneRows} * channels *
         (2 * sizeof(f16) + bits * sizeof(std::uint32_t));
}

// x is [rows][channels]. Codes are nearest to x between a channel's least and most; then zero and
// step are fitted to x by least squares. What is not finite gets some code, and no part in them.
void write_planes(const float* x, std::uint32_t rows, std::uint32_t channels, std::uint32_t bits,
                  std::byte* planes);

// score[h * stride + r] = query h . row r; query is [heads][channels]. Scratch grows to a group.
void score_planes(const std::byte* planes, std::uint32_t rows, std::uint32_t channels,
                  std::uint32_t bits, const float* query, std::uint32_t heads,
                  std::vector<float>* scratch, float* score, std::size_t stride);

}  // namespace thermocline
