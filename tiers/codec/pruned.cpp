#include "tiers/codec/pruned.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/format/row_pruned.h"
#include "tiers/codec/shown_queries.h"

namespace thermocline {
namespace {

using Layout = RowPruned5;  // of what the two do not differ in
constexpr f16 kNan{0x7e00};

bool finite(const f16* row, std::uint32_t dim) {
  return std::all_of(row, row + dim, [](f16 x) { return std::isfinite(to_float(x)); });
}

const std::uint16_t* channels_of(const SideFit& fit, std::uint32_t kept) {
  return reinterpret_cast<const std::uint16_t*>(fit.own) + std::size_t{fit.head} * kept;
}

// The `kept` channels of a head that matter most, ascending. Null `query`: all are asked alike.
void choose(const Fitting& of, std::uint32_t head, const float* query, std::uint32_t kept,
            std::uint16_t* channels) {
  const std::uint32_t dim = of.dim();
  std::vector<double> matters(dim);
  for (std::uint32_t n = 0; n < of.rows.rows; ++n) {
    const f16* row = of.stored(head, n);
    if (!finite(row, dim)) continue;
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

std::uint64_t PrunedCodec::bytes(FitShape shape, std::uint64_t, std::uint64_t) const {
  return Layout::common_bytes(shape.heads, shape.dim) + own_bytes(shape);
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
  const std::uint16_t* channel = channels_of(fit, kept(dim));
  if (!finite(row, dim)) {
    std::fill_n(to, kept(dim), kNan);
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
    const std::uint16_t* channel = channels_of(of, kept(shape.dim));
    for (std::uint32_t i = 0; i < kept(shape.dim); ++i)
      if (channel[i] >= shape.dim || (i > 0 && channel[i] <= channel[i - 1]))
        return "keeps a channel that there is not, or not after the one before it";
  }
  return nullptr;
}

}  // namespace thermocline
