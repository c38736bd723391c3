// Prefill: many rows of one timeline, each attending everything before it. Tiles of queries run
// through the folds in list order: sinks, sealed runs, then the span (tail and new rows) itself.
#include <algorithm>

#include "runtime/kv_impl.h"
#include "runtime/raw_fold.h"

namespace thermocline {
namespace {

// Tokens a tile, so that a tile's queries and accumulators stay in a core's cache. A function of
// the layer's shape alone: it is part of the answer.
std::uint32_t tile_tokens(HeadShape shape) {
  constexpr std::uint32_t kTileFloats = 16384;
  const std::uint32_t tokens = kTileFloats / (shape.heads * shape.key_dim);
  return std::clamp<std::uint32_t>(tokens / 16 * 16, 16, 64);
}

}  // namespace

Status KvCache::Impl::prefill_attend(LayerId l, MatView<const float> queries, MatView<float> out) {
  const LayerSpec& s = spec(l);
  const HeadShape heads = shape(l);
  const LayerState& layer = layer_state(rows[0].timeline, l);
  const std::uint32_t n = static_cast<std::uint32_t>(rows.size());
  const std::uint32_t first_position = rows[0].position;
  const std::uint32_t tokens = tile_tokens(heads);
  const std::uint32_t tiles_a_head = (n + tokens - 1) / tokens;
  const std::size_t tiles = std::size_t{tiles_a_head} * s.kv_heads;
  const std::size_t lanes = round_up(std::size_t{tokens} * heads.heads, kTileLanes);

  // Queries transposed, and running states, of every tile: a wave of folds visits all of them.
  const std::size_t state_floats = lanes * (2 + s.value_dim);
  TL_TRY_ASSIGN(float* query, tile_query_scratch.floats(tiles * lanes * s.key_dim));
  TL_TRY_ASSIGN(float* states, tile_state_scratch.floats(tiles * state_floats));
  const std::size_t scratch_floats = tile_scratch_floats(heads);
  TL_TRY_ASSIGN(float* scratch, tile_scratch.floats(scratch_floats * (workers->threads() + 1)));
  tile_positions.resize(tiles_a_head * lanes);

  const auto tile_at = [&](std::size_t t) {
    float* state = states + t * state_floats;
    return QueryTile{query + t * lanes * s.key_dim,
                     tile_positions.data() + t % tiles_a_head * lanes,
                     lanes,
                     state,
                     state + lanes,
                     state + 2 * lanes};
  };
  // Lane g * tokens + i of a tile is its token i under the group's query head g.
  for (std::uint32_t t = 0; t < tiles_a_head; ++t)
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      const std::uint32_t token = t * tokens + static_cast<std::uint32_t>(lane % tokens);
      tile_positions[t * lanes + lane] = first_position + std::min(token, n - 1);
    }
  workers->parallel(tiles, 1, [&](std::size_t first, std::size_t last) {
    alignas(64) float rotated[512];
    for (std::size_t t = first; t < last; ++t) {
      const std::size_t head = t / tiles_a_head;
      float* to = query + t * lanes * s.key_dim;
      std::fill_n(to, lanes * s.key_dim, 0.0f);
      const std::uint32_t first_token = static_cast<std::uint32_t>(t % tiles_a_head) * tokens;
      for (std::uint32_t i = first_token; i < std::min(first_token + tokens, n); ++i)
        for (std::uint32_t g = 0; g < heads.heads; ++g) {
          std::copy_n(queries.row(i) + (head * heads.heads + g) * s.key_dim, s.key_dim, rotated);
          rotate(l, i, rotated);
          const std::size_t lane = g * tokens + (i - first_token);
          for (std::uint32_t d = 0; d < s.key_dim; ++d) to[d * lanes + lane] = rotated[d] * s.scale;
        }
      const QueryTile tile = tile_at(t);
      std::fill_n(tile.max, lanes, -std::numeric_limits<float>::infinity());
      std::fill_n(tile.sum, lanes * (1 + s.value_dim), 0.0f);
    }
  });

  const auto scratch_here = [&] { return scratch + Workers::slot() * scratch_floats; };
  const std::uint32_t sinks = plan.layers[index(l)].sinks;
  const RawRows sink_rows = layer.sinks.view(0, std::min(sinks, first_position + n));
  if (sink_rows.rows > 0)
    workers->parallel(tiles, 1, [&](std::size_t first, std::size_t last) {
      for (std::size_t t = first; t < last; ++t)
        for (std::uint32_t at = 0; at < sink_rows.rows; at += kFoldRows) {
          const RawFold fold(sink_rows, static_cast<std::uint32_t>(t / tiles_a_head), at,
                             std::min<std::uint32_t>(kFoldRows, sink_rows.rows - at));
          cpu->attend.attend_tile(tile_at(t), heads, fold.fold, {true, at, 0}, scratch_here());
        }
    });

  if (!layer.runs.empty()) {
    if (read_lists.size() < s.kv_heads) read_lists.resize(s.kv_heads);
    requests.clear();
    for (std::uint32_t h = 0; h < s.kv_heads; ++h) {
      read_lists[h].clear();
      for (std::uint32_t r = 0; r < layer.runs.size(); ++r)
        read_lists[h].reads.push_back({r, Form::rows, true, 0, 0, false, 0});
      requests.push_back({h, layer.runs, &read_lists[h]});
    }
    TL_TRY(reader->start(index(l), requests, FoldOrder::in_list));
    while (true) {
      TL_TRY_ASSIGN(const auto wave, reader->next());
      if (wave.empty()) break;
      damaged.assign(wave.size(), 0);
      workers->parallel(wave.size(), 1, [&](std::size_t first, std::size_t last) {
        for (std::size_t f = first; f < last; ++f) damaged[f] = !verify(wave[f]);
      });
      for (std::size_t f = 0; f < wave.size(); ++f)
        if (damaged[f]) TL_TRY(reader->read_again(wave[f]));
      workers->parallel(tiles, 1, [&](std::size_t first, std::size_t last) {
        for (std::size_t t = first; t < last; ++t)
          for (const ReadyFold& ready : wave)
            if (ready.list == t / tiles_a_head)
              cpu->attend.attend_tile(tile_at(t), heads, ready.fold, {}, scratch_here());
      });
    }
  }

  const std::uint32_t raw_first = layer.tail_first;
  const std::uint32_t raw_rows =
      first_position + n > raw_first ? first_position + n - raw_first : 0;
  const RawRows raw = span.view(raw_first, raw_rows);
  workers->parallel(tiles, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t t = first; t < last; ++t) {
      const QueryTile tile = tile_at(t);
      const auto head = static_cast<std::uint32_t>(t / tiles_a_head);
      const std::uint32_t oldest = tile.position[0];
      const std::uint32_t newest = tile.position[tokens - 1];
      std::uint32_t at = 0;  // the first fold that the tile's oldest query can see
      if (s.window > 0 && oldest + 1 > raw_first + s.window)
        at = (oldest + 1 - s.window - raw_first) / kFoldRows * kFoldRows;
      for (; at < raw_rows && raw_first + at <= newest; at += kFoldRows) {
        const RawFold fold(raw, head, at, std::min<std::uint32_t>(kFoldRows, raw_rows - at));
        cpu->attend.attend_tile(tile, heads, fold.fold, {true, raw_first + at, s.window},
                                scratch_here());
      }
      const std::uint32_t first_token = static_cast<std::uint32_t>(t % tiles_a_head) * tokens;
      for (std::uint32_t i = first_token; i < std::min(first_token + tokens, n); ++i)
        for (std::uint32_t g = 0; g < heads.heads; ++g) {
          const std::size_t lane = g * tokens + (i - first_token);
          const float scale = tile.sum[lane] > 0.0f ? 1.0f / tile.sum[lane] : 0.0f;
          float* to = out.row(i) + (std::size_t{head} * heads.heads + g) * s.value_dim;
          for (std::uint32_t d = 0; d < s.value_dim; ++d)
            to[d] = tile.acc[d * lanes + lane] * scale;
        }
    }
  });
  return settle(l, raw, &pending_of(index(rows[0].timeline), index(l)));
}

}  // namespace thermocline
