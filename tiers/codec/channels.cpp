#include "tiers/codec/channels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/format/row_channels.h"
#include "tiers/codec/f16_limits.h"

namespace thermocline {
namespace {

using Layout = RowChannels2;  // of the fit, which both have

}  // namespace

std::uint64_t ChannelsCodec::bytes(FitShape shape, std::uint64_t rows, std::uint64_t) const {
  const std::uint64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  return blocks * Layout::own_bytes(shape.heads, kBlockRows, shape.dim);
}

Result<Fit> ChannelsCodec::fit(const Fitting& of, const Workers& workers) const {
  const std::uint32_t heads = of.rows.heads, rows = of.rows.rows, dim = of.dim();
  const std::uint32_t groups = Layout::groups(rows);
  Fit fit;
  TL_TRY_ASSIGN(fit.own, Buffer::create(Layout::own_bytes(heads, rows, dim)));
  f16* const own = fit.own.as<f16>().data();
  workers.parallel(std::size_t{heads} * groups, 16, [&](std::size_t first, std::size_t last) {
    for (std::size_t g = first; g < last; ++g)
      fit_group(of, static_cast<std::uint32_t>(g / groups), static_cast<std::uint32_t>(g % groups),
                own + g * 2 * dim);
  });
  return fit;
}

void ChannelsCodec::fit_group(const Fitting& of, std::uint32_t head, std::uint32_t group,
                              f16* scale) const {
  const std::uint32_t dim = of.dim(), first = group * Layout::kGroup;
  const std::uint32_t end = std::min(of.rows.rows, first + Layout::kGroup);
  const float steps = static_cast<float>((1 << static_cast<int>(bits_)) - 1);
  for (std::uint32_t i = 0; i < dim; ++i) {
    float least = std::numeric_limits<float>::infinity(), greatest = -least;
    bool finite = true;
    for (std::uint32_t r = first; r < end; ++r) {
      const f16 x = of.stored(head, r)[i];
      finite = finite && is_finite(x);
      least = std::min(least, to_float(x));
      greatest = std::max(greatest, to_float(x));
    }
    // No range of f16s over three steps or more is beyond them.
    scale[i] = finite ? f16_at_least((greatest - least) / steps) : kNanF16;
    scale[dim + i] = finite ? to_f16(least) : f16{};
  }
}

void ChannelsCodec::write(const f16* row, std::uint32_t dim, const SideFit& fit,
                          std::uint32_t number, std::byte* out) const {
  const int bits = static_cast<int>(bits_);
  const float most = static_cast<float>((1 << bits) - 1);
  const f16* scale = reinterpret_cast<const f16*>(fit.own) + Layout::scales_at(fit, number, dim);
  auto* codes = reinterpret_cast<std::uint8_t*>(out);
  std::memset(out, 0, row_bytes(format(), dim));
  for (std::uint32_t i = 0; i < dim; ++i) {
    const float by = to_float(scale[i]);
    if (!(by > 0.0f)) continue;  // all the same, or not a number whatever the code
    const float step = std::nearbyint((to_float(row[i]) - to_float(scale[dim + i])) / by);
    const auto code = static_cast<unsigned>(std::clamp(step, 0.0f, most));
    codes[i * static_cast<unsigned>(bits) / 8] |=
        static_cast<std::uint8_t>(code << i * static_cast<unsigned>(bits) % 8);
  }
}

FitFacts ChannelsCodec::facts(FitShape shape, std::uint32_t, std::span<const std::byte>,
                              std::span<const std::byte>) const {
  static_assert(Layout::kGroup == kFitGroup);
  return {.group_bytes = static_cast<std::uint32_t>(Layout::own_bytes(1, kFitGroup, shape.dim))};
}

const char* ChannelsCodec::flaw(FitShape shape, std::uint32_t rows,
                                std::span<const std::byte> common,
                                std::span<const std::byte> own) const {
  if (!common.empty()) return "has a common part, and this codec makes none";
  return own.size() == Layout::own_bytes(shape.heads, rows, shape.dim)
             ? nullptr
             : "has another number of scales than its rows have groups";
}

}  // namespace thermocline
