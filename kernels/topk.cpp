#include "kernels/topk.h"

#include <algorithm>
#include <bit>

#include "kernels/base/error.h"

namespace thermocline {
namespace {

// Values that are not negative are ordered as their bits are.
std::uint32_t key_of(float value) { return std::bit_cast<std::uint32_t>(value + 0.0f); }
float value_of(std::uint32_t key) { return std::bit_cast<float>(key); }

// Passes over more values than this are worth making fewer.
constexpr std::size_t kMany = 2048;

struct Threshold {
  float least = 0;          // of the k
  std::size_t surplus = 0;  // how many more than k reach it: all of them are equal to it
};

// By halving the range of keys that the k-th largest can have: a pass that only counts costs less
// than one that moves. `reach_low` values are not negative, more than k.
Threshold kth_largest(const TopkOps& ops, std::span<const float> value, std::size_t k,
                      std::size_t reach_low, TopRowsScratch* scratch) {
  std::uint32_t low = 0;  // reached by more than k
  std::uint32_t high = key_of(ops.largest(value.data(), value.size())) + 1;  // by fewer
  std::size_t reach_high = 0;
  while (high - low > 1) {
    const std::uint32_t middle = low + (high - low) / 2;
    const std::size_t reach = ops.count_reaching(value.data(), value.size(), value_of(middle));
    if (reach == k) return {value_of(middle), 0};
    (reach > k ? low : high) = middle;
    (reach > k ? reach_low : reach_high) = reach;
    if (value.size() > kMany && (reach_low - reach_high) * 4 < value.size()) {
      std::vector<float>& left = scratch->in_play;
      if (left.size() < value.size() + kTopkSlack) left.resize(value.size() + kTopkSlack);
      const std::size_t kept =
          ops.between(value.data(), value.size(), value_of(low), value_of(high), left.data());
      value = {left.data(), kept};
      k -= reach_high;
      reach_low = kept;
      reach_high = 0;
    }
  }
  return {value_of(low), reach_low - k};
}

}  // namespace

std::size_t top_rows(const TopkOps& ops, std::span<const float> value, std::size_t k,
                     TopRowsScratch* scratch, std::span<RowSet> rows) {
  TL_CHECK(rows.size() == (value.size() + kBlockRows - 1) / kBlockRows);
  if (k == 0) {
    std::fill(rows.begin(), rows.end(), RowSet{0});
    return 0;
  }
  const std::size_t all = ops.count_reaching(value.data(), value.size(), 0.0f);
  if (all <= k) {
    ops.reaching(value.data(), value.size(), 0.0f, rows.data());
    return all;
  }
  auto [least, surplus] = kth_largest(ops, value, k, all, scratch);
  ops.reaching(value.data(), value.size(), least, rows.data());
  for (std::size_t word = rows.size(); surplus > 0;)
    for (RowSet left = rows[--word]; left != 0 && surplus > 0;) {
      const int bit = std::bit_width(left) - 1;
      left ^= RowSet{1} << bit;
      if (value[word * kBlockRows + static_cast<std::size_t>(bit)] != least) continue;
      rows[word] ^= RowSet{1} << bit;
      --surplus;
    }
  return k;
}

}  // namespace thermocline
