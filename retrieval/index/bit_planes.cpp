#include "retrieval/index/bit_planes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "retrieval/scratch.h"

namespace thermocline {
namespace {

constexpr float kLargest = 65504.0f;  // f16

struct Scale {
  f16 zero, step;
};

std::size_t channel_bytes(std::uint32_t bits) {
  return sizeof(Scale) + bits * sizeof(std::uint32_t);
}

// One channel of a group.
void write_channel(const float* x, std::uint32_t rows, std::uint32_t channels, std::uint32_t bits,
                   std::byte* out) {
  float least = kLargest, most = -kLargest;
  for (std::uint32_t r = 0; r < rows; ++r) {
    const float value = x[r * channels];
    if (!std::isfinite(value)) continue;
    least = std::min(least, value);
    most = std::max(most, value);
  }
  const auto top = static_cast<float>((1u << bits) - 1);
  const float per_step = most > least ? top / (most - least) : 0.0f;
  std::uint32_t words[kMostPlanes] = {};
  double count = 0, codes = 0, values = 0, code_squares = 0, products = 0;
  for (std::uint32_t r = 0; r < rows; ++r) {
    const float value = x[r * channels];
    if (!std::isfinite(value)) continue;
    const long code = std::lrint(std::clamp((value - least) * per_step, 0.0f, top));
    for (std::uint32_t b = 0; b < bits; ++b)
      words[b] |= (static_cast<std::uint32_t>(code) >> b & 1) << r;
    const auto c = static_cast<double>(code);
    count += 1;
    codes += c;
    values += value;
    code_squares += c * c;
    products += c * value;
  }
  const double spread = count * code_squares - codes * codes;
  const double step = spread > 0 ? (count * products - codes * values) / spread : 0.0;
  const double zero = count > 0 ? (values - step * codes) / count : 0.0;
  const auto rounded = [](double value) {
    return to_f16(std::clamp(static_cast<float>(value), -kLargest, kLargest));
  };
  const Scale scale{rounded(zero), rounded(step)};
  std::memcpy(out, &scale, sizeof(scale));
  std::memcpy(out + sizeof(scale), words, bits * sizeof(std::uint32_t));
}

// kBits[byte][i]: bit i of it, as vectors of floats can be made of.
constexpr std::size_t kByteBits = 8;
constexpr auto kBits = [] {
  std::array<std::array<float, kByteBits>, 256> bits{};
  for (std::size_t byte = 0; byte < 256; ++byte)
    for (std::size_t i = 0; i < kByteBits; ++i) bits[byte][i] = byte >> i & 1 ? 1.0f : 0.0f;
  return bits;
}();

// To x [channels][kPlaneRows].
void read_group(const std::byte* group, std::uint32_t channels, std::uint32_t bits, float* x) {
  for (std::uint32_t d = 0; d < channels; ++d, x += kPlaneRows) {
    Scale scale;
    std::memcpy(&scale, group, sizeof(scale));
    group += sizeof(scale);
    std::fill_n(x, kPlaneRows, to_float(scale.zero));
    float step = to_float(scale.step);
    for (std::uint32_t b = 0; b < bits; ++b, step *= 2)
      for (std::size_t r = 0; r < kPlaneRows; r += kByteBits, ++group) {
        const auto& bit = kBits[std::to_integer<std::size_t>(*group)];
        for (std::size_t i = 0; i < kByteBits; ++i) x[r + i] += step * bit[i];
      }
  }
}

}  // namespace

void write_planes(const float* x, std::uint32_t rows, std::uint32_t channels, std::uint32_t bits,
                  std::byte* planes) {
  for (std::uint32_t first = 0; first < rows; first += kPlaneRows)
    for (std::uint32_t d = 0; d < channels; ++d, planes += channel_bytes(bits))
      write_channel(x + std::size_t{first} * channels + d, std::min(kPlaneRows, rows - first),
                    channels, bits, planes);
}

void score_planes(const std::byte* planes, std::uint32_t rows, std::uint32_t channels,
                  std::uint32_t bits, const float* query, std::uint32_t heads,
                  std::vector<float>* scratch, float* score, std::size_t stride) {
  const std::size_t floats = std::size_t{channels} * kPlaneRows;
  grow(scratch, floats);
  for (std::uint32_t first = 0; first < rows; first += kPlaneRows) {
    read_group(planes, channels, bits, scratch->data());
    planes += channels * channel_bytes(bits);
    const std::uint32_t count = std::min(kPlaneRows, rows - first);
    for (std::uint32_t h = 0; h < heads; ++h) {
      float sum[kPlaneRows] = {};
      const float* x = scratch->data();
      for (std::uint32_t d = 0; d < channels; ++d, x += kPlaneRows) {
        const float q = query[std::size_t{h} * channels + d];
        for (std::uint32_t r = 0; r < kPlaneRows; ++r) sum[r] += q * x[r];
      }
      std::copy_n(sum, count, score + h * stride + first);
    }
  }
}

}  // namespace thermocline
