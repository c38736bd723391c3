#include "tiers/codec/allotted.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/base/head_size.h"
#include "kernels/format/row_allotted.h"
#include "tiers/codec/f16_limits.h"
#include "tiers/codec/plain_row.h"
#include "tiers/codec/scaled_codes.h"
#include "tiers/codec/shown_queries.h"

namespace thermocline {
namespace {

constexpr std::uint32_t kMostBits = Allotted::kMostBits, kUnit = Allotted::kUnit;

// What is left of a normal channel's variance by codes of so many bits.
constexpr double kLeft[kMostBits + 1] = {1,        0.3634,   0.1175,   0.03462, 0.009688,
                                         0.002649, 0.000716, 0.000192, 0.000051};

// Where the codes of a width are.
struct Levels {
  static constexpr std::uint32_t kCells = 1024;

  std::uint32_t count = 1;
  std::array<float, 1u << kMostBits> at = {};
  std::array<float, 1u << kMostBits> border = {};  // above which the next one is nearer
  // Of as many equal parts of what lies between the outermost levels: the code at its lower end.
  std::array<std::uint8_t, kCells> code_from = {};
  float cells = 0;  // to a unit

  explicit Levels(std::uint32_t width) : count(1u << width) {
    for (std::uint32_t code = 0; code < count; ++code) {
      const float u = (2.0f * static_cast<float>(code) + 1) / static_cast<float>(count) - 1;
      at[code] = u * (Allotted::kLinear[width] + Allotted::kCubic[width] * u * u);
    }
    for (std::uint32_t code = 0; code + 1 < count; ++code)
      border[code] = (at[code] + at[code + 1]) / 2;
    border[count - 1] = std::numeric_limits<float>::infinity();
    if (count == 1) return;
    cells = kCells / (2 * most());
    // A part lower, so that a rounded quotient begins no further than it may.
    for (std::uint32_t cell = 1; cell < kCells; ++cell)
      code_from[cell] = search(static_cast<float>(cell - 1) / cells - most());
  }
  std::uint8_t search(float x) const {
    return static_cast<std::uint8_t>(
        std::lower_bound(border.begin(), border.begin() + (count - 1), x) - border.begin());
  }
  // What search() finds, hardly ever further than the next code.
  std::uint32_t nearest(float x) const {
    const float cell = std::clamp((x + most()) * cells, 0.0f, kCells - 1.0f);
    std::uint32_t code = code_from[static_cast<std::uint32_t>(cell)];
    while (border[code] < x) ++code;
    return code;
  }
  float most() const { return at[count - 1]; }
};
const Levels& levels_of(std::uint32_t width) {
  static const std::array<Levels, kMostBits + 1> levels = [] {
    return std::array{Levels(0), Levels(1), Levels(2), Levels(3), Levels(4),
                      Levels(5), Levels(6), Levels(7), Levels(8)};
  }();
  return levels[width];
}

// Of both channels that the embedding turns together, whose parts come and go with the position.
void share_in_pairs(const Rotation& rotation, float* squares) {
  const bool halves = rotation.layout == RopePairs::halves;
  for (std::uint32_t i = 0; i < rotation.pairs; ++i) {
    float& one = squares[halves ? i : 2 * i];
    float& other = squares[halves ? rotation.pairs + i : 2 * i + 1];
    one = other = (one + other) / 2;
  }
}

// Channels with more than 0, 1 ... 7 bits, of `dim` in order of what they are worth, the most
// first: each byte of codes goes to the eight channels to which the next bit is worth the most.
void allot(const std::vector<double>& worth, std::uint32_t codes_bytes, std::uint16_t* longer) {
  const std::size_t units = worth.size() / kUnit;
  std::vector<double> of_unit(units);
  for (std::size_t i = 0; i < worth.size(); ++i) of_unit[i / kUnit] += worth[i];
  std::vector<std::uint32_t> width(units);
  const auto gained = [&](std::size_t unit) {
    return width[unit] == kMostBits ? 0
                                    : of_unit[unit] * (kLeft[width[unit]] - kLeft[width[unit] + 1]);
  };
  for (std::uint32_t byte = 0; byte < codes_bytes; ++byte) {
    std::size_t best = 0;
    for (std::size_t unit = 1; unit < units; ++unit)
      if (gained(unit) > gained(best)) best = unit;
    if (!(gained(best) > 0)) break;
    longer[width[best]++] += kUnit;
  }
}

}  // namespace

std::string_view AllottedCodec::name() const {
  return bits_ == Bits::two ? "allotted2" : bits_ == Bits::three ? "allotted3" : "allotted4";
}

RowFormat AllottedCodec::format() const {
  return bits_ == Bits::two     ? RowFormat::allotted2
         : bits_ == Bits::three ? RowFormat::allotted3
                                : RowFormat::allotted4;
}

std::uint64_t AllottedCodec::bytes(FitShape shape, std::uint64_t, std::uint64_t) const {
  return ShownQueries::bytes(shape) + Allotted::own_bytes(shape.heads, shape.dim);
}

Result<Fit> AllottedCodec::fit(const Fitting& of, const Workers& workers) const {
  const FitShape shape{of.rows.heads, of.dim()};
  Fit fit;
  TL_TRY_ASSIGN(const std::span<const float> queries, ShownQueries::carry(of, &fit));
  TL_TRY_ASSIGN(fit.own, Buffer::create(Allotted::own_bytes(shape.heads, shape.dim)));
  workers.parallel(shape.heads, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t h = first; h < last; ++h)
      fit_head(of, static_cast<std::uint32_t>(h),
               queries.empty() ? nullptr : queries.data() + h * shape.dim, fit.own.data());
  });
  return fit;
}

void AllottedCodec::fit_head(const Fitting& of, std::uint32_t head, const float* queries,
                             std::byte* own) const {
  const std::uint32_t dim = of.dim();
  std::vector<double> sum(dim), squares(dim);
  float x[kMaxHeadSize];
  double rows = 0;
  for (std::uint32_t n = 0; n < of.rows.rows; ++n) {
    plain_row(of.stored(head, n), dim, of.rotation, of.position(head, n), x);
    if (!all_finite(x, dim)) continue;
    ++rows;
    for (std::uint32_t i = 0; i < dim; ++i) {
      sum[i] += double{x[i]};
      squares[i] += double{x[i]} * double{x[i]};
    }
  }
  float asked[kMaxHeadSize];
  std::fill_n(asked, dim, 1.0f);
  if (queries) std::copy_n(queries, dim, asked);
  if (queries && of.rotation) share_in_pairs(*of.rotation, asked);
  // Nothing is asked for nothing at all: the next query may.
  const double least =
      1e-3 * std::accumulate(asked, asked + dim, 0.0) / dim + std::numeric_limits<float>::min();

  std::vector<f16> mean(dim), spread(dim);
  std::vector<double> worth(dim);
  for (std::uint32_t i = 0; i < dim && rows > 0; ++i) {
    mean[i] = to_f16(static_cast<float>(sum[i] / rows));
    const double at = double{to_float(mean[i])};
    const double variance = std::max(0.0, squares[i] / rows - 2 * at * sum[i] / rows + at * at);
    spread[i] = to_f16(std::min(kMostF16, static_cast<float>(std::sqrt(variance))));
    worth[i] = std::pow(double{to_float(spread[i])}, 2) * (double{asked[i]} + least);
  }
  std::vector<std::uint16_t> order(dim);
  std::iota(order.begin(), order.end(), std::uint16_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::uint16_t a, std::uint16_t b) { return worth[a] > worth[b]; });
  std::sort(worth.begin(), worth.end(), std::greater<>());

  auto* longer = reinterpret_cast<std::uint16_t*>(own + head * Allotted::head_bytes(dim));
  std::fill_n(longer, kMostBits, std::uint16_t{0});
  allot(worth, codes_bytes(dim), longer);
  std::uint16_t* const channel = std::copy_n(order.begin(), dim, longer + kMostBits) - dim;
  auto* const spreads = reinterpret_cast<f16*>(channel + dim);
  for (std::uint32_t i = 0; i < dim; ++i) {
    spreads[i] = spread[channel[i]];
    spreads[dim + i] = mean[channel[i]];
  }
}

void AllottedCodec::write(const f16* row, std::uint32_t dim, const SideFit& fit,
                          std::uint32_t number, std::byte* out) const {
  float x[kMaxHeadSize];
  plain_row(row, dim, fit.rotation, fit.first_position + fit.offset_of(number), x);
  std::memset(out, 0, row_bytes(format(), dim));
  f16 scale;
  const auto finish = [&] { std::memcpy(out + codes_bytes(dim), &scale, sizeof scale); };
  if (!all_finite(x, dim)) {
    scale = kNanF16;
    return finish();
  }
  const Allotted of(fit, dim);
  const std::uint32_t coded = of.longer[0];
  float away[kMaxHeadSize], weight[kMaxHeadSize];  // from the mean, in spreads
  const Levels* levels[kMaxHeadSize];
  float least = 0;  // scale under which nothing is cut off
  for (std::uint32_t i = 0; i < coded; ++i) {
    const float spread = to_float(of.spread[i]);
    weight[i] = spread * spread;
    away[i] = spread > 0 ? (x[of.channel[i]] - to_float(of.mean[i])) / spread : 0;
    levels[i] = &levels_of(of.width(i));
    least = std::max(least, std::abs(away[i]) / levels[i]->most());
  }
  if (!(least > 0)) return finish();

  const ScaledCodes best = ScaledCodes::of({away, coded}, {weight, coded}, least,
                                           [&](std::size_t i, float at, float* level) {
                                             const std::uint32_t code = levels[i]->nearest(at);
                                             *level = levels[i]->at[code];
                                             return static_cast<std::uint8_t>(code);
                                           });
  scale = best.scale;
  auto* plane = reinterpret_cast<std::uint8_t*>(out);
  for (std::uint32_t k = 0; k < kMostBits; plane += of.longer[k++] / kUnit)
    for (std::uint32_t i = 0; i < of.longer[k]; ++i) {
      const std::uint32_t below = of.width(i) - 1 - k;
      plane[i / 8] |= static_cast<std::uint8_t>((best.code[i] >> below & 1) << i % 8);
    }
  finish();
}

FitFacts AllottedCodec::facts(FitShape shape, std::uint32_t, std::span<const std::byte>,
                              std::span<const std::byte>) const {
  return {.head_bytes = static_cast<std::uint32_t>(Allotted::head_bytes(shape.dim))};
}

const char* AllottedCodec::flaw(FitShape shape, std::uint32_t, std::span<const std::byte> common,
                                std::span<const std::byte> own) const {
  if (const char* flaw = ShownQueries::flaw(shape, common)) return flaw;
  if (own.size() != Allotted::own_bytes(shape.heads, shape.dim))
    return "has spreads of another number of channels";
  SideFit side{.own = own.data()};
  for (side.head = 0; side.head < shape.heads; ++side.head) {
    const Allotted of(side, shape.dim);
    std::uint32_t bits = 0, before = shape.dim;
    for (std::uint32_t k = 0; k < kMostBits; ++k) {
      if (of.longer[k] > before || of.longer[k] % kUnit != 0)
        return "allots bits that are not of eights of channels, most to the first";
      bits += before = of.longer[k];
    }
    if (bits > codes_bytes(shape.dim) * 8) return "allots more bits than a row has";
    std::vector<bool> met(shape.dim);
    for (std::uint32_t i = 0; i < shape.dim; ++i) {
      if (of.channel[i] >= shape.dim || met[of.channel[i]])
        return "has an order that is not of each channel once";
      met[of.channel[i]] = true;
    }
  }
  return nullptr;
}

}  // namespace thermocline
