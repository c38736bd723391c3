#include "retrieval/index/key_clusters.h"

#include <algorithm>
#include <cmath>

#include "retrieval/in_tasks.h"

namespace thermocline {
namespace {

constexpr std::size_t kTaskRows = 256;  // sums are taken task by task

// Reads the keys [rows][dim] and returns their mean.
std::vector<float> read_keys(const Sealing& sealing, std::uint32_t head, const CpuTable& cpu,
                             const Workers& workers, std::vector<float>* keys) {
  const std::size_t rows = sealing.rows.rows, dim = sealing.shape.key_dim;
  const std::size_t tasks = (rows + kTaskRows - 1) / kTaskRows;
  std::vector<float> sums(tasks * dim), mean(dim);
  keys->resize(rows * dim);
  in_tasks(rows, kTaskRows, workers, [&](std::size_t first, std::size_t last) {
    float* sum = sums.data() + first / kTaskRows * dim;
    for (std::size_t r = first; r < last; ++r) {
      float* key = keys->data() + r * dim;
      cpu.dense.from_half(sealing.rows.key(head, static_cast<std::uint32_t>(r)), dim, key);
      for (std::size_t d = 0; d < dim; ++d) sum[d] += key[d];
    }
  });
  for (std::size_t t = 0; t < tasks; ++t)
    for (std::size_t d = 0; d < dim; ++d) mean[d] += sums[t * dim + d] / static_cast<float>(rows);
  return mean;
}

}  // namespace

std::vector<float> directions(const std::vector<float>& keys, const std::vector<float>& mean,
                              const Workers& workers) {
  const std::size_t dim = mean.size(), rows = keys.size() / dim;
  std::vector<float> out(keys.size());
  in_tasks(rows, kTaskRows, workers, [&](std::size_t first, std::size_t last) {
    for (std::size_t r = first; r < last; ++r) {
      const float* key = keys.data() + r * dim;
      float* to = out.data() + r * dim;
      float squares = 0.0f;
      for (std::size_t d = 0; d < dim; ++d) {
        to[d] = key[d] - mean[d];
        squares += to[d] * to[d];
      }
      const bool directed = squares > 0.0f && std::isfinite(squares);
      const float scale = directed ? 1.0f / std::sqrt(squares) : 0.0f;
      for (std::size_t d = 0; d < dim; ++d) to[d] = directed ? to[d] * scale : 0.0f;
    }
  });
  return out;
}

KeyClusters cluster_keys(const Sealing& sealing, std::uint32_t head, std::uint32_t clusters,
                         const KmeansOptions& options, const CpuTable& cpu,
                         const Workers& workers) {
  const std::uint32_t rows = sealing.rows.rows;
  KeyClusters made;
  const std::vector<float> mean = read_keys(sealing, head, cpu, workers, &made.keys);
  std::vector<std::uint32_t> of_row(rows);
  const std::vector<std::size_t> groups =
      kmeans(directions(made.keys, mean, workers).data(), rows, sealing.shape.key_dim, clusters,
             options, cpu.nearest, workers, of_row);
  made.groups.assign(groups.begin(), groups.end());
  std::vector<std::uint32_t> next(clusters + 1);
  for (const std::uint32_t c : of_row) ++next[c + 1];
  for (std::uint32_t c = 0; c < clusters; ++c) next[c + 1] += next[c];
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
