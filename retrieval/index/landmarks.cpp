#include "retrieval/index/landmarks.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace thermocline {

std::span<const Parameter<LandmarksOptions>> LandmarksCode::parameters() {
  static constexpr Parameter<LandmarksOptions> kParameters[] = {
      {"chunk", &LandmarksOptions::chunk, 2, 256}, {"outliers", &LandmarksOptions::outliers, 0, 1}};
  return kParameters;
}

std::uint64_t LandmarksCode::bytes(HeadShape shape, std::uint32_t rows) const {
  return std::uint64_t{units(rows)} * (shape.key_dim * sizeof(f16) + 1);
}

void LandmarksCode::keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const {
  const std::uint32_t dim = sealing.shape.key_dim, rows = sealing.rows.rows;
  const std::uint32_t chunks = units(rows);
  auto* means = reinterpret_cast<f16*>(kept);
  std::vector<double> mean(dim), worst(chunks);
  for (std::uint32_t u = 0; u < chunks; ++u) {
    const std::uint32_t first = u * block(), end = std::min(rows, first + block());
    std::fill(mean.begin(), mean.end(), 0.0);
    for (std::uint32_t r = first; r < end; ++r)
      for (std::uint32_t d = 0; d < dim; ++d)
        mean[d] += to_float(sealing.rows.key(head, r)[d]) / static_cast<double>(end - first);
    for (std::uint32_t d = 0; d < dim; ++d)
      means[u * dim + d] = to_f16(static_cast<float>(mean[d]));
    worst[u] = 1.0;
    for (std::uint32_t r = first; r < end; ++r) {
      double along = 0, key_squares = 0, mean_squares = 0;
      for (std::uint32_t d = 0; d < dim; ++d) {
        const double x = to_float(sealing.rows.key(head, r)[d]);
        along += x * mean[d];
        key_squares += x * x;
        mean_squares += mean[d] * mean[d];
      }
      const double length = std::sqrt(key_squares * mean_squares);
      const double cosine = length > 0 ? along / length : 0.0;
      worst[u] = std::isfinite(length) ? std::min(worst[u], cosine)
                                       : -std::numeric_limits<double>::infinity();
    }
  }
  std::vector<std::uint32_t> order(chunks);
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::uint32_t a, std::uint32_t b) { return worst[a] < worst[b]; });
  const auto outliers = static_cast<std::size_t>(std::lround(options_.outliers * chunks));
  for (std::size_t i = 0; i < outliers; ++i)
    kept[std::size_t{chunks} * dim * sizeof(f16) + order[i]] = std::byte{1};
}

std::vector<std::uint32_t> LandmarksCode::always(HeadShape shape, std::uint32_t rows,
                                                 const std::byte* kept) const {
  const std::byte* outlier = kept + std::size_t{units(rows)} * shape.key_dim * sizeof(f16);
  std::vector<std::uint32_t> always;
  for (std::uint32_t r = 0; r < rows; ++r)
    if (outlier[r / block()] != std::byte{0}) always.push_back(r);
  return always;
}

// Rounded up, so that what many short segments round to is no more.
std::uint64_t LandmarksCode::always_rows(std::uint64_t rows) const {
  const std::uint64_t chunks = (rows + block() - 1) / block();
  return static_cast<std::uint64_t>(std::ceil(options_.outliers * static_cast<double>(chunks))) *
         block();
}

std::optional<UnitFormat> LandmarksCode::unit_format() const {
  return UnitFormat{.score = UnitScore::landmarks};
}

void LandmarksCode::locate(HeadShape shape, std::uint32_t rows, const std::byte* kept,
                           IndexedRows* out) const {
  out->unit_keys = kept;
  out->unit_key_bytes = shape.key_dim * sizeof(f16);
  out->always = kept + std::size_t{units(rows)} * out->unit_key_bytes;
}

std::uint64_t LandmarksCode::score(const BlockQuery& query, KeyScratch*, float* score,
                                   std::size_t stride) const {
  const HeadShape shape = query.shape;
  const std::size_t chunks = units(query.rows), mean_bytes = shape.key_dim * sizeof(f16);
  cpu_.sketch.dot_rows(RowFormat::f16, query.kept, mean_bytes, chunks, shape.key_dim, query.query,
                       static_cast<int>(shape.heads), score, stride);
  const std::byte* outlier = query.kept + chunks * mean_bytes;
  for (std::size_t u = 0; u < chunks; ++u)
    for (std::size_t h = 0; h < shape.heads && outlier[u] != std::byte{0}; ++h)
      score[h * stride + u] = std::numeric_limits<float>::infinity();
  return bytes(query.shape, query.rows);
}

}  // namespace thermocline
