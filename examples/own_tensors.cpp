// The cache without a model: one layer, our own keys, values and queries. Each key points its own
// way and each value is its position, so a query that repeats key 3 brings back 3.
#include <cmath>
#include <iostream>

#include "runtime/kv_cache.h"

using namespace thermocline;
constexpr std::uint32_t kRows = 8, kSize = 16;

Result<float> recall(std::uint32_t wanted) {
  CacheOptions options;
  options.layers = {LayerSpec{.q_heads = 1,
                              .kv_heads = 1,
                              .key_dim = kSize,
                              .value_dim = kSize,
                              .window = 0,
                              .scale = 1.0f,
                              .rope = {}}};
  TL_TRY_ASSIGN(const auto cache, KvCache::create(options, 1, "auto"));
  TL_TRY_ASSIGN(const Timeline timeline, cache->start());

  float out[kSize] = {};
  for (std::uint32_t row = 0; row < kRows; ++row) {
    float key[kSize] = {}, query[kSize] = {}, value[kSize];
    key[row] = 40.0f;
    query[wanted] = 1.0f;
    for (float& x : value) x = static_cast<float>(row);
    const Token token{timeline.id(), row};
    TL_TRY(cache->begin({&token, 1}, Pass::decode));
    TL_TRY(cache->append(LayerId{0}, {key, 1, kSize}, {value, 1, kSize}));
    TL_TRY(cache->attend(LayerId{0}, {query, 1, kSize}, {out, 1, kSize}));
    TL_TRY(cache->commit());
  }
  return out[0];
}

int main() {
  const Result<float> found = recall(3);
  if (!found)
    std::cerr << found.error().message << std::endl;
  else
    std::cout << "asked for row 3, got " << *found << std::endl;
  return found && std::fabs(*found - 3.0f) < 0.01f ? 0 : 1;
}
