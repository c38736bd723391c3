#include "kernels/attend_reference.h"

#include <algorithm>
#include <cmath>

namespace thermocline {
namespace {

bool sees(const Visibility& visible, std::uint32_t rank, std::uint32_t position) {
  if (!visible.masked) return true;
  const std::uint32_t at = visible.first_position + rank;
  return at <= position && (visible.window == 0 || position - at < visible.window);
}

}  // namespace

std::vector<double> attend_reference(const float* query, HeadShape shape,
                                     std::span<const Fold> folds,
                                     std::span<const Visibility> visible, std::uint32_t position,
                                     std::uint32_t head) {
  std::vector<double> score;
  std::vector<std::vector<float>> values;
  std::vector<bool> counts;  // whether a row's weight is one of its own
  std::vector<float> key(shape.key_dim), value(shape.value_dim);
  double max = -std::numeric_limits<double>::infinity();
  for (std::size_t f = 0; f < folds.size(); ++f) {
    std::uint32_t rank = 0;
    for (const BlockView& block : folds[f].blocks) {
      std::uint32_t rank_in_block = 0;
      for (std::size_t row = 0; row < kBlockRows; ++row) {
        if (!(block.rows >> row & 1)) continue;
        const std::uint32_t at = rank_in_block++ * (folds[f].scored ? shape.heads : 1);
        const float weight =
            block.log_weight ? block.log_weight[at + (folds[f].scored ? head : 0)] : 0.0f;
        if (!visible.empty() && !sees(visible[f], rank++, position)) continue;
        const Fold& fold = folds[f];
        const std::uint32_t number = block.first_number + static_cast<std::uint32_t>(row);
        read_row(fold.key_format, block.key + row * fold.key_stride, shape.key_dim, key.data(),
                 fold.key_fit, number);
        read_row(fold.value_format, block.value + row * fold.value_stride, shape.value_dim,
                 value.data(), fold.value_fit, number);
        double s = weight;
        if (!fold.scored)
          for (std::uint32_t d = 0; d < shape.key_dim; ++d) s += double{query[d]} * double{key[d]};
        score.push_back(s);
        values.push_back(value);
        counts.push_back(!fold.residual);
        max = std::max(max, s);
      }
    }
  }
  std::vector<double> out(shape.value_dim);
  double sum = 0.0;
  for (std::size_t r = 0; r < score.size(); ++r) {
    const double weight = std::exp(score[r] - max);
    if (counts[r]) sum += weight;
    for (std::uint32_t d = 0; d < shape.value_dim; ++d) out[d] += weight * double{values[r][d]};
  }
  for (double& x : out) x = sum > 0.0 ? x / sum : 0.0;
  return out;
}

}  // namespace thermocline
