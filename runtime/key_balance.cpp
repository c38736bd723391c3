#include "runtime/key_balance.h"

#include <cmath>

#include "kernels/base/head_size.h"

namespace thermocline {

KeyBalance KeyBalance::of(const LayerSpec& layer) {
  KeyBalance balance;
  for (const std::int8_t power : layer.query_powers) {
    balance.up_.push_back(std::ldexp(1.0f, power));
    balance.down_.push_back(std::ldexp(1.0f, -power));
  }
  return balance;
}

void KeyBalance::convert_from(const KeyBalance& by, std::uint32_t key_dim, const CpuTable& cpu,
                              std::byte* key) const {
  alignas(64) float floats[kMaxHeadSize];
  cpu.dense.from_half(key, key_dim, floats);
  by.restore(floats);
  keep(floats);
  cpu.dense.to_half(floats, key_dim, key);
}

Status check_query_powers(std::size_t layer, const LayerSpec& spec) {
  const auto& powers = spec.query_powers;
  if (powers.empty()) return {};
  if (powers.size() != spec.key_dim)
    return fail(ErrorCode::invalid_argument, "layer ", layer, ": ", powers.size(),
                " query powers, its keys have ", spec.key_dim, " channels");
  for (const std::int8_t power : powers)
    if (power < kLeastQueryPower || power > kMostQueryPower)
      return fail(ErrorCode::invalid_argument, "layer ", layer, ": a query power of ", int{power},
                  ", they are ", kLeastQueryPower, " to ", kMostQueryPower);
  for (std::size_t i = 0; i < spec.rope.inverse_frequency.size(); ++i) {
    const auto [one, other] = spec.rope.channels(i);
    if (powers[one] != powers[other])
      return fail(ErrorCode::invalid_argument, "layer ", layer, ": query powers ", int{powers[one]},
                  " and ", int{powers[other]}, " of channels ", one, " and ", other,
                  ", which are rotated together");
  }
  return {};
}

}  // namespace thermocline
