#include "kernels/topk.h"

#include <algorithm>
#include <array>
#include <bit>
#include <functional>

#include "kernels/base/error.h"

namespace thermocline {
namespace {

// Values that are not negative are ordered as their bits are.
std::uint32_t key_of(float value) { return std::bit_cast<std::uint32_t>(value + 0.0f); }

struct Threshold {
  std::uint32_t key = 0;   // the k-th largest
  std::size_t equals = 0;  // how many of those equal to it belong to the k
};

// Selection by counting: first quarters of an octave below the largest, then a byte at a time. Keys
// that are still in play move to the front, and are sorted when they are few.
Threshold kth_largest(std::span<std::uint32_t> keys, std::size_t k) {
  TL_CHECK(k >= 1 && k <= keys.size());
  constexpr std::size_t kFew = 24;
  constexpr std::uint32_t kBins = 256, kExponent = 21;  // above two bits of the mantissa
  std::size_t left = keys.size();
  const auto keep = [&](const auto& bin_of) {  // the bin of the k-th; bin 0 has the largest keys
    std::array<std::uint32_t, kBins> bin{};
    for (std::size_t i = 0; i < left; ++i) ++bin[bin_of(keys[i])];
    std::uint32_t wanted = 0;
    for (; bin[wanted] < k; ++wanted) k -= bin[wanted];
    std::size_t kept = 0;
    for (std::size_t i = 0; i < left; ++i) {
      keys[kept] = keys[i];
      kept += bin_of(keys[i]) == wanted;
    }
    left = kept;
  };
  if (left > kFew) {
    const std::uint32_t top = *std::max_element(keys.begin(), keys.end()) >> kExponent;
    keep([&](std::uint32_t key) { return std::min(top - (key >> kExponent), kBins - 1); });
  }
  // What is far below the largest is in one bin: its keys may differ in every bit.
  for (int shift = 24; shift >= 0 && left > kFew; shift -= 8)
    keep([&](std::uint32_t key) { return kBins - 1 - (key >> shift & (kBins - 1)); });
  std::sort(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(left), std::greater<>());
  const std::uint32_t key = keys[k - 1];
  std::size_t above = 0;
  while (keys[above] > key) ++above;
  return {key, k - above};
}

// At least k values reach the k-th largest of the parts' largest, and few others do.
float lower_bound(std::span<const float> most, std::size_t k, std::span<std::uint32_t> keys) {
  std::size_t found = 0;
  for (const float m : most) {
    keys[found] = key_of(m);
    found += m >= 0.0f;
  }
  return found < k ? 0.0f : std::bit_cast<float>(kth_largest(keys.first(found), k).key);
}

}  // namespace

std::size_t top_rows(const TopkOps& ops, std::span<const float> value, std::size_t k,
                     TopRowsScratch* scratch, std::span<RowSet> rows) {
  TL_CHECK(rows.size() == (value.size() + kBlockRows - 1) / kBlockRows);
  if (k == 0) {
    std::fill(rows.begin(), rows.end(), RowSet{0});
    return 0;
  }
  const std::size_t blocks = value.size() / kBlockRows;
  scratch->most.resize(blocks * ops.parts);
  if (scratch->keys.size() < value.size()) {
    scratch->keys.resize(value.size());
    scratch->rows.resize(value.size());
  }
  const std::span<std::uint32_t> keys = scratch->keys, found_rows = scratch->rows;
  ops.largest(value.data(), blocks, scratch->most.data());
  ops.reaching(value.data(), value.size(), lower_bound(scratch->most, k, keys), rows.data());
  std::size_t found = 0;
  for (std::size_t word = 0; word < rows.size(); ++word)
    for (RowSet left = rows[word]; left != 0; left &= left - 1, ++found) {
      const std::size_t r = word * kBlockRows + static_cast<std::size_t>(std::countr_zero(left));
      found_rows[found] = static_cast<std::uint32_t>(r);
      keys[found] = key_of(value[r]);
    }
  if (found <= k) return found;
  Threshold least = kth_largest(keys.first(found), k);
  for (const std::uint32_t r : found_rows.first(found)) {
    const std::uint32_t key = key_of(value[r]);
    if (key > least.key) continue;
    if (key == least.key && least.equals > 0) {
      --least.equals;
    } else {
      rows[r / kBlockRows] &= ~(RowSet{1} << r % kBlockRows);
    }
  }
  return k;
}

}  // namespace thermocline
