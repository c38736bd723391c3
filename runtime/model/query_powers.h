// How large a model's queries are in each channel, where its weights say so: what a method that
// keeps keys balanced goes by (runtime/key_balance.h). It is known before a text is, and the same
// for every text.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/layer_spec.h"

namespace thermocline {

// LayerSpec::query_powers of a layer whose queries are normed and then weighted by `q_norm`,
// [key_dim], before they are rotated; over the channels that are rotated together. Empty, where it
// has none, one that is not finite, or one of like weights.
std::vector<std::int8_t> query_powers(const LayerSpec& layer, std::span<const float> q_norm);

}  // namespace thermocline
