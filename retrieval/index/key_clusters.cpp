#include "retrieval/index/key_clusters.h"

#include <algorithm>
#include <cmath>

namespace thermocline {
namespace {

// The keys [rows][dim] less their mean, scaled to length 1.
std::vector<float> directions(const Sealing& sealing, std::uint32_t head, const CpuTable& cpu) {
  const std::size_t rows = sealing.rows.rows, dim = sealing.shape.key_dim;
  std::vector<float> out(rows * dim);
  std::vector<double> mean(dim);
  for (std::size_t r = 0; r < rows; ++r) {
    float* key = out.data() + r * dim;
    cpu.dense.from_half(sealing.rows.key(head, static_cast<std::uint32_t>(r)), dim, key);
    for (std::size_t d = 0; d < dim; ++d) mean[d] += key[d] / static_cast<double>(rows);
  }
  for (std::size_t r = 0; r < rows; ++r) {
    float* key = out.data() + r * dim;
    double squares = 0;
    for (std::size_t d = 0; d < dim; ++d) {
      key[d] = static_cast<float>(key[d] - mean[d]);
      squares += double{key[d]} * key[d];
    }
    const bool directed = squares > 0 && std::isfinite(squares);
    const float scale = directed ? static_cast<float>(1 / std::sqrt(squares)) : 0.0f;
    for (std::size_t d = 0; d < dim; ++d) key[d] = directed ? key[d] * scale : 0.0f;
  }
  return out;
}

}  // namespace

KeyClusters cluster_keys(const Sealing& sealing, std::uint32_t head, std::uint32_t clusters,
                         const KmeansOptions& options, const CpuTable& cpu,
                         const Workers& workers) {
  const std::uint32_t rows = sealing.rows.rows;
  std::vector<std::uint32_t> of_row(rows);
  kmeans(directions(sealing, head, cpu).data(), rows, sealing.shape.key_dim, clusters, options,
         cpu.nearest, workers, of_row);
  std::vector<std::uint32_t> next(clusters + 1);
  for (const std::uint32_t c : of_row) ++next[c + 1];
  for (std::uint32_t c = 0; c < clusters; ++c) next[c + 1] += next[c];
  KeyClusters made;
  made.starts.assign(next.begin(), next.end());
  made.order.resize(rows);
  for (std::uint32_t r = 0; r < rows; ++r) made.order[next[of_row[r]]++] = r;
  return made;
}

void average_rows(const RawRows& rows, std::uint32_t head, std::span<const std::uint32_t> of,
                  const f16* (RawRows::*side)(std::uint32_t, std::uint32_t) const,
                  std::span<double> out) {
  std::fill(out.begin(), out.end(), 0.0);
  for (const std::uint32_t r : of)
    for (std::size_t d = 0; d < out.size(); ++d)
      out[d] += to_float((rows.*side)(head, r)[d]) / static_cast<double>(of.size());
}

}  // namespace thermocline
