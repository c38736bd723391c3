#include "kernels/topk.h"

#include <algorithm>
#include <array>
#include <bit>

#include "kernels/base/error.h"

namespace thermocline {
namespace {

constexpr std::size_t kStretch = 16;  // values whose maximum is compared first

// Values that are not negative are ordered as their bits are.
std::uint32_t key_of(float value) { return std::bit_cast<std::uint32_t>(value + 0.0f); }

struct Threshold {
  std::uint32_t key = 0;   // the k-th largest
  std::size_t equals = 0;  // how many of those equal to it belong to the k
};

// Radix selection, a byte at a time from the top; keys that are still in play move to the front.
Threshold kth_largest(std::span<std::uint32_t> keys, std::size_t k) {
  TL_CHECK(k >= 1 && k <= keys.size());
  std::uint32_t prefix = 0;
  std::size_t left = keys.size();
  for (int shift = 24; shift >= 0; shift -= 8) {
    std::array<std::uint32_t, 256> bin{};
    for (std::size_t i = 0; i < left; ++i) ++bin[keys[i] >> shift & 0xff];
    std::uint32_t digit = 255;
    for (; bin[digit] < k; --digit) k -= bin[digit];
    std::size_t kept = 0;
    for (std::size_t i = 0; i < left; ++i) {
      keys[kept] = keys[i];
      kept += (keys[i] >> shift & 0xff) == digit;
    }
    left = kept;
    prefix |= digit << shift;
  }
  return {prefix, k};
}

// The largest value of each stretch; -1 where there is none.
void fill_most(std::span<const float> value, std::vector<float>* most) {
  const std::size_t whole = value.size() / kStretch;
  for (std::size_t s = 0; s < whole; ++s) {
    float lane[4] = {-1.0f, -1.0f, -1.0f, -1.0f};
    for (std::size_t i = s * kStretch; i < (s + 1) * kStretch; i += 4)
      for (std::size_t j = 0; j < 4; ++j) lane[j] = value[i + j] > lane[j] ? value[i + j] : lane[j];
    (*most)[s] = std::max(std::max(lane[0], lane[1]), std::max(lane[2], lane[3]));
  }
  if (whole == most->size()) return;
  most->back() = -1.0f;
  for (std::size_t i = whole * kStretch; i < value.size(); ++i)
    most->back() = value[i] > most->back() ? value[i] : most->back();
}

// At least k values reach the k-th largest maximum of a stretch, and few others do.
float lower_bound(std::span<const float> most, std::size_t k, std::span<std::uint32_t> keys) {
  std::size_t found = 0;
  for (const float m : most) {
    keys[found] = key_of(m);
    found += m >= 0.0f;
  }
  return found < k ? 0.0f : std::bit_cast<float>(kth_largest(keys.first(found), k).key);
}

}  // namespace

std::size_t top_rows(std::span<const float> value, std::size_t k, TopRowsScratch* scratch,
                     std::span<RowSet> rows) {
  TL_CHECK(rows.size() == (value.size() + kBlockRows - 1) / kBlockRows);
  std::fill(rows.begin(), rows.end(), RowSet{0});
  if (k == 0) return 0;

  std::vector<float>& most = scratch->most;
  most.resize((value.size() + kStretch - 1) / kStretch);
  if (scratch->keys.size() < value.size()) {
    scratch->keys.resize(value.size());
    scratch->candidates.resize(value.size());
  }
  const std::span<std::uint32_t> keys = scratch->keys, candidates = scratch->candidates;
  fill_most(value, &most);
  const float bound = lower_bound(most, k, keys);
  std::size_t found = 0;  // without branches: which values pass is anyone's guess
  for (std::size_t s = 0; s < most.size(); ++s) {
    if (!(most[s] >= bound)) continue;
    const std::size_t end = std::min((s + 1) * kStretch, value.size());
    for (std::size_t i = s * kStretch; i < end; ++i) {
      candidates[found] = static_cast<std::uint32_t>(i);
      keys[found] = key_of(value[i]);
      found += value[i] >= bound;
    }
  }
  const auto take = [&](std::uint32_t r) { rows[r / kBlockRows] |= RowSet{1} << r % kBlockRows; };
  if (found <= k) {
    for (const std::uint32_t r : candidates.first(found)) take(r);
    return found;
  }
  Threshold least = kth_largest(keys.first(found), k);
  for (const std::uint32_t r : candidates.first(found)) {
    const std::uint32_t key = key_of(value[r]);
    if (key > least.key) {
      take(r);
    } else if (key == least.key && least.equals > 0) {
      take(r);
      --least.equals;
    }
  }
  return k;
}

}  // namespace thermocline
