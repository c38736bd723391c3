#include "tests/support/written_rows.h"

#include <cmath>
#include <random>
#include <string>

namespace thermocline {

LayerSpec plain_layer(std::uint32_t kv_heads, std::uint32_t group, std::uint32_t key_dim,
                      std::uint32_t value_dim, std::uint32_t window) {
  LayerSpec spec;
  spec.kv_heads = kv_heads;
  spec.q_heads = kv_heads * group;
  spec.key_dim = key_dim;
  spec.value_dim = value_dim;
  spec.window = window;
  spec.scale = 1.0f / std::sqrt(static_cast<float>(key_dim));
  for (std::uint32_t i = 0; i < key_dim / 2; ++i)
    spec.rope.inverse_frequency.push_back(std::pow(10000.0f, -2.0f * float(i) / float(key_dim)));
  for (std::uint32_t d = 0; d < key_dim; ++d)
    spec.query_powers.push_back(static_cast<std::int8_t>(d % (key_dim / 2) * 7 % 4));
  return spec;
}

Result<std::vector<float>> advance(KvCache* cache, const Timeline& timeline, std::uint32_t rows,
                                   Pass pass, unsigned text) {
  std::vector<Token> at;
  for (std::uint32_t r = 0; r < rows; ++r) at.push_back({timeline.id(), timeline.length() + r});
  TL_TRY(cache->begin(at, pass));
  std::vector<float> all;
  for (std::uint32_t l = 0; l < cache->layers().size(); ++l) {
    const LayerSpec& spec = cache->layers()[l];
    const auto made = [&](std::size_t columns, unsigned what) {
      std::vector<float> values;
      for (const Token& token : at) {
        std::mt19937 random(((text * 31 + what) * 31 + l) * 100003 + token.position);
        std::normal_distribution<float> normal;
        for (std::size_t c = 0; c < columns; ++c) values.push_back(normal(random));
      }
      return values;
    };
    const std::size_t k = spec.kv_heads * spec.key_dim, v = spec.kv_heads * spec.value_dim;
    const auto keys = made(k, 1), values = made(v, 2),
               queries = made(spec.q_heads * spec.key_dim, 3);
    std::vector<float> out(rows * spec.q_heads * spec.value_dim);
    TL_TRY(cache->append(LayerId{l}, {keys.data(), rows, k}, {values.data(), rows, v}));
    TL_TRY(cache->attend(LayerId{l}, {queries.data(), rows, queries.size() / rows},
                         {out.data(), rows, out.size() / rows}));
    all.insert(all.end(), out.begin(), out.end());
  }
  TL_TRY(cache->commit());
  return all;
}

SessionText session_text(std::uint32_t tokens) {
  SessionText text;
  for (std::uint32_t t = 0; t < tokens; ++t) text.tokens.push_back(static_cast<int>(t * 7 % 1000));
  text.seed = 42;
  text.sampler = std::to_string(tokens);
  text.logits = {0.5f, -1.0f};
  text.note = "by the caller";
  return text;
}

}  // namespace thermocline
