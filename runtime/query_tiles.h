// A layer's queries in a prefill, cut into tiles of some tokens of one KV head. Lane
// g * tokens + i of a tile is its token i under the group's query head g.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/attend.h"
#include "kernels/base/buffer.h"
#include "runtime/layer_spec.h"

namespace thermocline {

struct QueryTiles {
  HeadShape heads;
  std::uint32_t rows = 0, first_position = 0;  // of the step
  std::uint32_t tokens = 0, a_head = 0;        // tokens a tile; tiles a KV head
  std::size_t count = 0, lanes = 0;
  // Memory that someone else owns.
  float* query = nullptr;             // [count][key_dim][lanes]
  float* state = nullptr;             // [count]: max and sum [lanes], acc [value_dim][lanes]
  std::uint32_t* position = nullptr;  // [a_head][lanes]

  // Tokens a tile, so that a tile's queries and accumulators stay in a core's cache. A function of
  // the layer's shape alone.
  static QueryTiles cut(const LayerSpec& spec, std::uint32_t first_position, std::uint32_t rows) {
    constexpr std::uint32_t kTileFloats = 16384;
    QueryTiles tiles;
    tiles.heads = {spec.q_heads / spec.kv_heads, spec.key_dim, spec.value_dim};
    tiles.rows = rows;
    tiles.first_position = first_position;
    tiles.tokens = std::clamp<std::uint32_t>(
        kTileFloats / (tiles.heads.heads * spec.key_dim) / 16 * 16, 16, 64);
    tiles.a_head = (rows + tiles.tokens - 1) / tiles.tokens;
    tiles.count = std::size_t{tiles.a_head} * spec.kv_heads;
    tiles.lanes = round_up(std::size_t{tiles.tokens} * tiles.heads.heads, kTileLanes);
    return tiles;
  }

  std::size_t query_floats() const { return lanes * heads.key_dim; }  // of a tile
  std::size_t state_floats() const { return lanes * (2 + heads.value_dim); }
  std::size_t positions() const { return a_head * lanes; }
  // That `threads` threads attend in, each in its slot.
  std::size_t scratch_floats(int threads) const {
    return tile_scratch_floats(heads) * static_cast<std::size_t>(threads);
  }
  std::uint32_t head(std::size_t t) const { return static_cast<std::uint32_t>(t / a_head); }
  std::uint32_t first_token(std::size_t t) const {
    return static_cast<std::uint32_t>(t % a_head) * tokens;
  }
  std::uint32_t last_token(std::size_t t) const { return std::min(first_token(t) + tokens, rows); }
  QueryTile operator[](std::size_t t) const {
    float* of = state + t * state_floats();
    return {query + t * query_floats(),
            position + t % a_head * lanes,
            lanes,
            of,
            of + lanes,
            of + 2 * lanes};
  }
};

}  // namespace thermocline
