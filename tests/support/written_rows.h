// A text for a cache without a model: rows that layer, position and a number alone decide.
#pragma once

#include <vector>

#include "runtime/kv_cache.h"

namespace thermocline {

LayerSpec plain_layer(std::uint32_t kv_heads, std::uint32_t group, std::uint32_t key_dim,
                      std::uint32_t value_dim, std::uint32_t window = 0);

// Appends, attends and commits `rows` rows of text number `text`. Returns what attention gave, of
// all layers.
Result<std::vector<float>> advance(KvCache* cache, const Timeline& timeline, std::uint32_t rows,
                                   Pass pass, unsigned text = 1);

// A session's text of so many tokens, that number in its other fields too.
SessionText session_text(std::uint32_t tokens);

}  // namespace thermocline
