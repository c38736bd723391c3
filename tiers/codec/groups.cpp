#include "tiers/codec/groups.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/base/error.h"
#include "kernels/format/row_groups.h"
#include "tiers/codec/f16_limits.h"

namespace thermocline {
namespace {

constexpr std::uint32_t kChannels = 32;  // a group

// The channels of a group: 32, or 16 in the last one of a row.
using Channels = std::span<const float>;

// The one of the largest magnitude, with its sign; the first of several.
float largest_of(Channels x) {
  float largest = 0;
  for (const float one : x)
    if (std::abs(one) > std::abs(largest)) largest = one;
  return largest;
}
// What to multiply by in place of a division; 0 by 0: all codes are those of zero.
float inverse(float scale) { return scale != 0 ? 1 / scale : 0; }

void put_nibble(std::uint8_t* nibbles, std::size_t i, int code) {
  nibbles[i % 16] |= static_cast<std::uint8_t>((code & 15) << i / 16 * 4);
}
void put_fifth(std::uint8_t* bits, std::size_t i, int code) {
  bits[i / 8] |= static_cast<std::uint8_t>(code >> 4 << i % 8);
}

void quantise(Channels x, Q8_0::Block* out) {
  const float scale = std::abs(largest_of(x)) / 127, by = inverse(scale);
  out->scale = to_f16(scale);
  for (std::size_t i = 0; i < x.size(); ++i)
    out->word[i] = static_cast<std::int8_t>(std::round(x[i] * by));
}

// Codes around zero: the largest magnitude takes the end of the levels that has one more.
template <int kHalf>
int code_around_zero(float x, float by) {
  return std::min(2 * kHalf - 1, static_cast<int>(x * by + (kHalf + 0.5f)));
}
void quantise(Channels x, Q4_0::Block* out) {
  const float scale = largest_of(x) / -8, by = inverse(scale);
  out->scale = to_f16(scale);
  for (std::size_t i = 0; i < x.size(); ++i)
    put_nibble(out->nibble, i, code_around_zero<8>(x[i], by));
}
void quantise(Channels x, Q5_0::Block* out) {
  const float scale = largest_of(x) / -16, by = inverse(scale);
  out->scale = to_f16(scale);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const int code = code_around_zero<16>(x[i], by);
    put_nibble(out->nibble, i, code);
    put_fifth(out->fifth, i, code);
  }
}

// Codes from the least channel up. Writes scale and offset, gives what codes are made with.
struct Range {
  float least, by;
  int code(float x, int last) const {
    return std::min(last, static_cast<int>((x - least) * by + 0.5f));
  }
};
Range range_of(Channels x, int last, f16* scale_offset) {
  const auto [least, most] = std::minmax_element(x.begin(), x.end());
  const float scale = (*most - *least) / static_cast<float>(last);
  scale_offset[0] = to_f16(scale);
  scale_offset[1] = to_f16(*least);
  return {*least, inverse(scale)};
}
void quantise(Channels x, Q4_1::Block* out) {
  const Range range = range_of(x, 15, out->scale_offset);
  for (std::size_t i = 0; i < x.size(); ++i) put_nibble(out->nibble, i, range.code(x[i], 15));
}
void quantise(Channels x, Q5_1::Block* out) {
  const Range range = range_of(x, 31, out->scale_offset);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const int code = range.code(x[i], 31);
    put_nibble(out->nibble, i, code);
    put_fifth(out->fifth, i, code);
  }
}
void quantise(Channels x, Kivi2::Block* out) {
  const Range range = range_of(x, 3, out->scale_offset);
  for (std::size_t i = 0; i < x.size(); ++i)
    out->codes[i / 4] |= static_cast<std::uint8_t>(range.code(x[i], 3) << i % 4 * 2);
}

// The nearest level; the higher of two.
int nearest_level(float x) {
  const float* levels = Iq4Nl::kLevels;
  const auto above =
      std::clamp<std::ptrdiff_t>(std::upper_bound(levels, levels + 16, x) - levels, 1, 15);
  return static_cast<int>(x - levels[above - 1] < levels[above] - x ? above - 1 : above);
}
// Codes by the scale that puts the largest magnitude on the lowest level; then the scale that has
// the least squares of errors, weighed by the channels' own squares, for these codes.
void quantise(Channels x, Iq4Nl::Block* out) {
  constexpr float kNothing = 1e-15f;
  const float largest = largest_of(x);
  if (std::abs(largest) < kNothing) return;
  const float by = 1 / (largest / Iq4Nl::kLevels[0]);
  float with_x = 0, with_itself = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const int code = nearest_level(by * x[i]);
    const float level = Iq4Nl::kLevels[code], weight = x[i] * x[i];
    put_nibble(out->nibble, i, code);
    with_x += weight * level * x[i];
    with_itself += weight * level * level;
  }
  out->scale = to_f16(with_x / with_itself);
}

template <typename Format>
void encode_groups(const f16* row, std::uint32_t dim, std::byte* out) {
  using Block = typename Format::Block;
  for (std::uint32_t first = 0; first < dim; first += kChannels, out += sizeof(Block)) {
    const std::uint32_t n = std::min(kChannels, dim - first);
    float x[kChannels];
    for (std::uint32_t i = 0; i < n; ++i) x[i] = to_float(row[first + i]);
    Block block{};
    if (all_finite(row + first, n))
      quantise(Channels(x, n), &block);
    else if constexpr (requires { block.scale; })
      block.scale = kNanF16;
    else
      block.scale_offset[0] = block.scale_offset[1] = kNanF16;
    std::memcpy(out, &block, sizeof block);
  }
}

}  // namespace

struct GroupCodec::Rule {
  RowFormat format;
  std::string_view name;
  void (*encode)(const f16* row, std::uint32_t dim, std::byte* out);
};

namespace {

constexpr GroupCodec::Rule kRules[] = {{RowFormat::q8_0, "q8_0", &encode_groups<RowQ8_0>},
                                       {RowFormat::q4_0, "q4_0", &encode_groups<RowQ4_0>},
                                       {RowFormat::q4_1, "q4_1", &encode_groups<RowQ4_1>},
                                       {RowFormat::q5_0, "q5_0", &encode_groups<RowQ5_0>},
                                       {RowFormat::q5_1, "q5_1", &encode_groups<RowQ5_1>},
                                       {RowFormat::iq4_nl, "iq4_nl", &encode_groups<RowIq4Nl>},
                                       {RowFormat::kivi2, "kivi2", &encode_groups<RowKivi2>}};

const GroupCodec::Rule* rule_of(RowFormat format) {
  const auto* rule = std::find_if(std::begin(kRules), std::end(kRules),
                                  [&](const auto& one) { return one.format == format; });
  TL_CHECK(rule != std::end(kRules));
  return rule;
}

}  // namespace

GroupCodec::GroupCodec(RowFormat format) : rule_(rule_of(format)) {}
std::string_view GroupCodec::name() const { return rule_->name; }
RowFormat GroupCodec::format() const { return rule_->format; }
void GroupCodec::encode(const f16* row, std::uint32_t dim, std::byte* out) const {
  rule_->encode(row, dim, out);
}

}  // namespace thermocline
