#include "retrieval/index/pq.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "retrieval/scratch.h"

namespace thermocline {
namespace {

constexpr std::uint32_t kRowsACentroid = 4;

// Centroids of one part of the channels. The nearest of them in distance is the one with the
// largest x . c - |c|^2 / 2: a product with one channel more, of which every row has a 1.
class PartMeans {
 public:
  PartMeans(std::uint32_t count, std::uint32_t dim)
      : count_(count),
        dim_(dim),
        mean_(std::size_t{count} * dim),
        panels_((std::size_t{count} + kCentrePanel - 1) / kCentrePanel * kCentrePanel * (dim + 1)) {
  }

  float* mean(std::uint32_t c) { return mean_.data() + std::size_t{c} * dim_; }

  // rows: [count][dim + 1].
  void start_at_even_rows(const std::vector<float>& rows, std::uint32_t count) {
    for (std::uint32_t c = 0; c < count_; ++c) {
      const std::size_t row = (std::size_t{2} * c + 1) * count / (2 * std::size_t{count_});
      std::copy_n(rows.data() + row * (dim_ + 1), dim_, mean(c));
    }
  }
  void find(const std::vector<float>& rows, std::uint32_t count, const NearestOps& ops,
            std::uint32_t* nearest) {
    const std::size_t padded = panels_.size() / (dim_ + 1);
    for (std::size_t c = 0; c < padded; ++c) {
      const float* from = mean(static_cast<std::uint32_t>(std::min<std::size_t>(c, count_ - 1)));
      float* to = panels_.data() + c / kCentrePanel * kCentrePanel * (dim_ + 1) + c % kCentrePanel;
      float squares = 0.0f;
      for (std::uint32_t d = 0; d < dim_; ++d) {
        to[d * kCentrePanel] = from[d];
        squares += from[d] * from[d];
      }
      to[dim_ * kCentrePanel] = -0.5f * squares;
    }
    ops.nearest(rows.data(), count, dim_ + 1, panels_.data(), count_, nearest);
  }
  // One without rows stays where it is.
  void move(const std::vector<float>& rows, std::uint32_t count, const std::uint32_t* nearest) {
    std::vector<float> sum(mean_.size());
    std::vector<std::uint32_t> rows_of(count_);
    for (std::uint32_t r = 0; r < count; ++r) {
      const float* row = rows.data() + std::size_t{r} * (dim_ + 1);
      float* to = sum.data() + std::size_t{nearest[r]} * dim_;
      for (std::uint32_t d = 0; d < dim_; ++d) to[d] += row[d];
      ++rows_of[nearest[r]];
    }
    for (std::uint32_t c = 0; c < count_; ++c)
      for (std::uint32_t d = 0; d < dim_ && rows_of[c] > 0; ++d)
        mean(c)[d] = sum[std::size_t{c} * dim_ + d] / static_cast<float>(rows_of[c]);
  }

 private:
  std::uint32_t count_, dim_;
  std::vector<float> mean_, panels_;
};

}  // namespace

std::span<const Parameter<PqOptions>> PqCode::parameters() {
  static constexpr Parameter<PqOptions> kParameters[] = {
      {"parts", &PqOptions::parts, 1, 256},
      {"bits", &PqOptions::bits, 1, 8},
      {"iterations", &PqOptions::iterations, 0, 100}};
  return kParameters;
}

std::uint32_t PqCode::centroids(std::uint32_t rows) const {
  return std::min(1u << options_.bits, (rows + kRowsACentroid - 1) / kRowsACentroid);
}

// Centroids [count][key_dim] in halves, then codes [rows][parts].
std::uint64_t PqCode::bytes(HeadShape shape, std::uint32_t rows) const {
  return std::uint64_t{centroids(rows)} * shape.key_dim * sizeof(f16) +
         std::uint64_t{rows} * parts(shape);
}

void PqCode::keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const {
  const std::uint32_t rows = sealing.rows.rows, dim = sealing.shape.key_dim;
  const std::uint32_t count = centroids(rows), parts = this->parts(sealing.shape);
  f16* centroid = reinterpret_cast<f16*>(kept);
  auto* code = reinterpret_cast<std::uint8_t*>(kept + std::size_t{count} * dim * sizeof(f16));
  std::vector<float> keys(std::size_t{rows} * dim), part;
  for (std::uint32_t r = 0; r < rows; ++r)
    cpu_.dense.from_half(sealing.rows.key(head, r), dim, keys.data() + std::size_t{r} * dim);
  for (float& x : keys)
    if (!std::isfinite(x)) x = 0.0f;  // it would be in the mean of every row beside it
  std::vector<std::uint32_t> nearest(rows);
  for (std::uint32_t p = 0; p < parts; ++p) {
    const std::uint32_t from = first_channel(p, parts, dim);
    const std::uint32_t width = first_channel(p + 1, parts, dim) - from;
    part.resize(std::size_t{rows} * (width + 1));
    for (std::uint32_t r = 0; r < rows; ++r) {
      float* to = part.data() + std::size_t{r} * (width + 1);
      std::copy_n(keys.data() + std::size_t{r} * dim + from, width, to);
      to[width] = 1.0f;
    }
    PartMeans means(count, width);
    means.start_at_even_rows(part, rows);
    for (std::uint32_t i = 0; i < options_.iterations; ++i) {
      means.find(part, rows, cpu_.nearest, nearest.data());
      means.move(part, rows, nearest.data());
    }
    means.find(part, rows, cpu_.nearest, nearest.data());
    for (std::uint32_t c = 0; c < count; ++c)
      cpu_.dense.to_half(means.mean(c), width, centroid + std::size_t{c} * dim + from);
    for (std::uint32_t r = 0; r < rows; ++r)
      code[std::size_t{r} * parts + p] = static_cast<std::uint8_t>(nearest[r]);
  }
}

const char* PqCode::flaw(HeadShape shape, std::uint32_t rows, const std::byte* kept) const {
  const std::uint32_t count = centroids(rows);
  const auto* code = reinterpret_cast<const std::uint8_t*>(kept + std::size_t{count} *
                                                                      shape.key_dim * sizeof(f16));
  const bool named = std::all_of(code, code + std::size_t{rows} * parts(shape),
                                 [&](std::uint8_t c) { return c < count; });
  return named ? nullptr : "has a code of no centroid";
}

std::uint64_t PqCode::score(const BlockQuery& query, KeyScratch* scratch, float* score,
                            std::size_t stride) const {
  const std::uint32_t dim = query.shape.key_dim, parts = this->parts(query.shape);
  const std::uint32_t count = centroids(query.rows);
  const f16* centroid = reinterpret_cast<const f16*>(query.kept);
  const auto* code =
      reinterpret_cast<const std::uint8_t*>(query.kept + std::size_t{count} * dim * sizeof(f16));
  // [heads][parts][count] products, behind a centroid as floats.
  const std::size_t products = std::size_t{parts} * count;
  const std::size_t floats = dim + query.shape.heads * products;
  grow(&scratch->floats, floats);
  float* values = scratch->floats.data();
  float* table = values + dim;
  for (std::uint32_t c = 0; c < count; ++c) {
    cpu_.dense.from_half(centroid + std::size_t{c} * dim, dim, values);
    for (std::uint32_t h = 0; h < query.shape.heads; ++h)
      for (std::uint32_t p = 0; p < parts; ++p) {
        float sum = 0.0f;
        for (std::uint32_t d = first_channel(p, parts, dim), end = first_channel(p + 1, parts, dim);
             d < end; ++d)
          sum += query.query[std::size_t{h} * dim + d] * values[d];
        table[h * products + std::size_t{p} * count + c] = sum;
      }
  }
  for (std::uint32_t h = 0; h < query.shape.heads; ++h) {
    const float* of = table + h * products;
    for (std::uint32_t r = 0; r < query.rows; ++r) {
      const std::uint8_t* named = code + std::size_t{r} * parts;
      float sum = 0.0f;
      for (std::uint32_t p = 0; p < parts; ++p) sum += of[std::size_t{p} * count + named[p]];
      score[h * stride + r] = sum;
    }
  }
  return bytes(query.shape, query.rows);
}

}  // namespace thermocline
