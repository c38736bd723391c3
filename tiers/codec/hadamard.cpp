#include "tiers/codec/hadamard.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/base/head_size.h"
#include "kernels/format/row_hadamard.h"
#include "kernels/hadamard.h"
#include "tiers/codec/f16_limits.h"
#include "tiers/codec/plain_row.h"

namespace thermocline {
namespace {

using Layout = RowHadamard2;  // of the fit, which both have

void rotated_row(const f16* row, std::uint32_t dim, const Rotation* rotation,
                 std::uint32_t position, float* out) {
  plain_row(row, dim, rotation, position, out);
  hadamard(out, dim);
  clamp_to_f16(dim, out);
}

// Of a head's rotated channels, those of the least mean first. A row that is not finite has none.
void order_channels(const Fitting& of, std::uint32_t head, std::uint16_t* order) {
  const std::uint32_t dim = of.dim();
  std::vector<double> sum(dim);
  float x[kMaxHeadSize];
  for (std::uint32_t n = 0; n < of.rows.rows; ++n) {
    rotated_row(of.stored(head, n), dim, of.rotation, of.position(head, n), x);
    if (!all_finite(x, dim)) continue;
    for (std::uint32_t i = 0; i < dim; ++i) sum[i] += double{x[i]};
  }
  std::iota(order, order + dim, std::uint16_t{0});
  std::stable_sort(order, order + dim,
                   [&](std::uint16_t a, std::uint16_t b) { return sum[a] < sum[b]; });
}

}  // namespace

std::uint64_t HadamardCodec::bytes(FitShape shape, std::uint64_t, std::uint64_t) const {
  return Layout::own_bytes(shape.heads, shape.dim);
}

Result<Fit> HadamardCodec::fit(const Fitting& of, const Workers& workers) const {
  Fit fit;
  TL_TRY_ASSIGN(fit.own, Buffer::create(Layout::own_bytes(of.rows.heads, of.dim())));
  std::uint16_t* const order = fit.own.as<std::uint16_t>().data();
  workers.parallel(of.rows.heads, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t h = first; h < last; ++h)
      order_channels(of, static_cast<std::uint32_t>(h), order + h * of.dim());
  });
  return fit;
}

void HadamardCodec::write(const f16* row, std::uint32_t dim, const SideFit& fit,
                          std::uint32_t number, std::byte* out) const {
  float rotated[kMaxHeadSize];
  rotated_row(row, dim, fit.rotation, fit.first_position + fit.offset_of(number), rotated);
  f16 ordered[kMaxHeadSize];
  const std::uint16_t* channel = Layout::order(fit, dim);
  for (std::uint32_t i = 0; i < dim; ++i) ordered[i] = to_f16(rotated[channel[i]]);
  groups_.encode(ordered, dim, out);
}

FitFacts HadamardCodec::facts(FitShape shape, std::uint32_t, std::span<const std::byte>,
                              std::span<const std::byte>) const {
  return {.head_bytes = static_cast<std::uint32_t>(Layout::own_bytes(1, shape.dim))};
}

const char* HadamardCodec::flaw(FitShape shape, std::uint32_t, std::span<const std::byte> common,
                                std::span<const std::byte> own) const {
  if (!common.empty()) return "has a common part, and this codec makes none";
  if (own.size() != Layout::own_bytes(shape.heads, shape.dim))
    return "has orders of another number of channels";
  const auto* order = reinterpret_cast<const std::uint16_t*>(own.data());
  for (std::uint32_t h = 0; h < shape.heads; ++h, order += shape.dim) {
    std::vector<bool> met(shape.dim);
    for (std::uint32_t i = 0; i < shape.dim; ++i) {
      if (order[i] >= shape.dim || met[order[i]])
        return "has an order that is not of each channel once";
      met[order[i]] = true;
    }
  }
  return nullptr;
}

}  // namespace thermocline
