#include "tiers/codec/pruned.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/format/row_pruned.h"
#include "tiers/codec/f16_limits.h"
#include "tiers/codec/shown_queries.h"

namespace thermocline {
namespace {

// The `kept` channels of a head that matter most, ascending. Null `query`: all are asked alike.
void choose(const Fitting& of, std::uint32_t head, const float* query, std::uint32_t kept,
            std::uint16_t* channels) {
  const std::uint32_t dim = of.dim();
  std::vector<double> matters(dim);
  for (std::uint32_t n = 0; n < of.rows.rows; ++n) {
    const f16* row = of.stored(head, n);
    if (!all_finite(row, dim)) continue;
    for (std::uint32_t i = 0; i < dim; ++i) matters[i] += std::pow(double{to_float(row[i])}, 2);
  }
  for (std::uint32_t i = 0; query && i < dim; ++i) matters[i] *= double{query[i]};
  std::vector<std::uint16_t> order(dim);
  std::iota(order.begin(), order.end(), std::uint16_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::uint16_t a, std::uint16_t b) { return matters[a] > matters[b]; });
  std::sort(order.begin(), order.begin() + kept);
  std::copy_n(order.begin(), kept, channels);
}

}  // namespace

std::uint64_t PrunedCodec::own_bytes(FitShape shape) const {
  return ChannelsKept::own_bytes(shape.heads, kept(shape.dim));
}

std::uint64_t PrunedCodec::bytes(FitShape shape, std::uint64_t, std::uint64_t) const {
  return ShownQueries::bytes(shape) + own_bytes(shape);
}

Result<Fit> PrunedCodec::fit(const Fitting& of, const Workers& workers) const {
  const FitShape shape{of.rows.heads, of.dim()};
  Fit fit;
  TL_TRY_ASSIGN(const std::span<const float> queries, ShownQueries::carry(of, &fit));
  TL_TRY_ASSIGN(fit.own, Buffer::create(own_bytes(shape)));
  std::uint16_t* const channels = fit.own.as<std::uint16_t>().data();
  workers.parallel(shape.heads, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t h = first; h < last; ++h)
      choose(of, static_cast<std::uint32_t>(h),
             queries.empty() ? nullptr : queries.data() + h * shape.dim, kept(shape.dim),
             channels + h * kept(shape.dim));
  });
  return fit;
}

void PrunedCodec::write(const f16* row, std::uint32_t dim, const SideFit& fit, std::uint32_t,
                        std::byte* out) const {
  auto* to = reinterpret_cast<f16*>(out);
  const std::uint16_t* channel = ChannelsKept::of(fit, kept(dim));
  if (!all_finite(row, dim)) {
    std::fill_n(to, kept(dim), kNanF16);
    return;
  }
  for (std::uint32_t i = 0; i < kept(dim); ++i) to[i] = row[channel[i]];
}

FitFacts PrunedCodec::facts(FitShape shape, std::uint32_t, std::span<const std::byte>,
                            std::span<const std::byte>) const {
  return {.head_bytes = static_cast<std::uint32_t>(own_bytes({1, shape.dim}))};
}

const char* PrunedCodec::flaw(FitShape shape, std::uint32_t, std::span<const std::byte> common,
                              std::span<const std::byte> own) const {
  if (const char* flaw = ShownQueries::flaw(shape, common)) return flaw;
  if (own.size() != own_bytes(shape)) return "keeps another number of channels than this method";
  SideFit of{.own = own.data()};
  for (of.head = 0; of.head < shape.heads; ++of.head) {
    const std::uint16_t* channel = ChannelsKept::of(of, kept(shape.dim));
    for (std::uint32_t i = 0; i < kept(shape.dim); ++i)
      if (channel[i] >= shape.dim || (i > 0 && channel[i] <= channel[i - 1]))
        return "keeps a channel that there is not, or not after the one before it";
  }
  return nullptr;
}

}  // namespace thermocline
