// Keys measured as scores see them. A channel of a key weighs in a score as much as queries are
// large there, and in models that norm their queries, each channel with a weight of its own
// (Gemma 3, Qwen3), that differs by tenfold and more. What makes clusters or codes of keys counts
// all channels alike: so a method may have keys kept times, and queries divided by, about how large
// queries are in a channel (LayerSpec::query_powers). Then an error of a key is one of its scores,
// wherever it lies.
//
// All of it is by powers of two, and the same for what a rotation turns together: products stay to
// the bit what they were, but for keys so small that f16 has no exponent for them, or so large,
// which are kept as the largest that there is.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cpu/table.h"
#include "runtime/layer_spec.h"

namespace thermocline {

// Of one layer. Immutable.
class KeyBalance {
 public:
  KeyBalance() = default;  // leaves keys and queries as they are
  static KeyBalance of(const LayerSpec& layer);

  // In place, [key_dim]: a key to how it is kept, and back; a query to what asks keys that are kept
  // so, and back.
  void keep(float* key) const {
    multiply(up_, key);
    for (std::size_t d = 0; d < up_.size(); ++d) key[d] = std::clamp(key[d], -kLargest, kLargest);
  }
  void restore(float* key) const { multiply(down_, key); }
  void ask(float* query) const { multiply(down_, query); }
  void restore_query(float* query) const { multiply(up_, query); }
  // A key in f16, [key_dim], that was kept by `by` to how this keeps it.
  void convert_from(const KeyBalance& by, std::uint32_t key_dim, const CpuTable& cpu,
                    std::byte* key) const;

  // What keep() and ask() multiply by, [key_dim]; empty: ones.
  std::span<const float> key_factors() const { return up_; }
  std::span<const float> query_factors() const { return down_; }

  friend bool operator==(const KeyBalance&, const KeyBalance&) = default;

 private:
  static constexpr float kLargest = 65504.0f;  // f16

  static void multiply(const std::vector<float>& factors, float* x) {
    for (std::size_t d = 0; d < factors.size(); ++d) x[d] *= factors[d];
  }

  std::vector<float> up_, down_;  // [key_dim]; empty: ones
};

// invalid_argument: names the layer, and what of its query_powers is not as LayerSpec says.
Status check_query_powers(std::size_t layer, const LayerSpec& spec);

}  // namespace thermocline
