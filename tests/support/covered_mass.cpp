#include "tests/support/covered_mass.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace thermocline {
namespace {

std::vector<double> scores(const float* query, std::uint32_t key_dim, const RunKeys& keys) {
  std::vector<double> out(keys.rows);
  std::vector<float> key(key_dim);
  for (std::uint32_t r = 0; r < keys.rows; ++r) {
    read_row(keys.layout.key_format, keys.data + std::size_t{r} * keys.layout.bytes(), key_dim,
             key.data());
    for (std::uint32_t d = 0; d < key_dim; ++d) out[r] += double{query[d]} * double{key[d]};
  }
  return out;
}

bool reads(const ReadList& list, const Read& read, std::uint32_t row) {
  if (read.everything) return true;
  for (std::uint32_t p = read.first; p < read.last; ++p)
    if (list.picks[p].block == row / kBlockRows)
      return (list.picks[p].rows >> row % kBlockRows & 1) != 0;
  return false;
}

}  // namespace

double covered_mass(HeadShape shape, const ListQuery& query, std::span<const RunKeys> keys,
                    const ReadList& list) {
  TL_CHECK(keys.size() == query.runs.size());
  double covered_by_heads = 0.0;
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    std::vector<std::vector<double>> score;
    const bool steady = h < query.steady.size() && query.steady[h].sum > 0.0f;
    double max = steady ? query.steady[h].max : -std::numeric_limits<double>::infinity();
    for (const RunKeys& run : keys) {
      score.push_back(scores(query.query + std::size_t{h} * shape.key_dim, shape.key_dim, run));
      for (const double s : score.back()) max = std::max(max, s);
    }
    double covered = steady ? query.steady[h].sum * std::exp(query.steady[h].max - max) : 0.0;
    double all = covered;
    for (const auto& run : score)
      for (const double s : run) all += std::exp(s - max);
    for (const Read& read : list.reads) {
      if (read.form != Form::rows) continue;
      for (std::uint32_t r = 0; r < keys[read.run].rows; ++r)
        if (reads(list, read, r)) covered += std::exp(score[read.run][r] - max);
    }
    covered_by_heads += all > 0.0 ? covered / all : 1.0;
  }
  return covered_by_heads / shape.heads;
}

}  // namespace thermocline
