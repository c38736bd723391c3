// Prefill: many rows of one timeline, each attending everything before it. Tiles of queries run
// through the folds in list order: sinks, sealed runs, then the span (tail and new rows) itself. By
// a device: kv_prefill_there.cpp.
//
// A lane of a tile does not feel the others, and raw folds are cut on a grid of positions: so where
// a call begins and ends does not show in a row's bits, as long as what it reads is cut alike.
//
// Far into a text a layer takes minutes: whether to stop is asked before each fold of each tile.
#include <algorithm>

#include "runtime/kv_impl.h"
#include "runtime/raw_fold.h"

namespace thermocline {

Result<QueryTiles> KvCache::Impl::cut_tiles(LayerId l) {
  QueryTiles tiles =
      QueryTiles::cut(spec(l), rows[0].position, static_cast<std::uint32_t>(rows.size()));
  // Of every tile, since a wave of folds visits all of them.
  TL_TRY_ASSIGN(tiles.query, tile_query_scratch.floats(tiles.count * tiles.query_floats()));
  TL_TRY_ASSIGN(tiles.state, tile_state_scratch.floats(tiles.count * tiles.state_floats()));
  TL_TRY(tile_scratch.floats(tiles.scratch_floats(workers->threads())));
  tile_positions.reserve(tiles.positions());  // and no more than that, as is planned
  tile_positions.resize(tiles.positions());
  tiles.position = tile_positions.data();
  for (std::uint32_t t = 0; t < tiles.a_head; ++t)
    for (std::size_t lane = 0; lane < tiles.lanes; ++lane) {
      const std::uint32_t token =
          tiles.first_token(t) + static_cast<std::uint32_t>(lane) % tiles.tokens;
      tiles.position[t * tiles.lanes + lane] =
          tiles.first_position + std::min(token, tiles.rows - 1);
    }
  return tiles;
}

// Queries rotated, scaled and transposed; states that have seen nothing.
void KvCache::Impl::load_tiles(LayerId l, MatView<const float> queries, const QueryTiles& tiles) {
  const LayerSpec& s = spec(l);
  for_tiles(tiles, [&](std::size_t t, const QueryTile& tile) {
    alignas(64) float rotated[kMaxHeadSize];
    float* to = tiles.query + t * tiles.query_floats();
    std::fill_n(to, tiles.query_floats(), 0.0f);
    for (std::uint32_t i = tiles.first_token(t); i < tiles.last_token(t); ++i)
      for (std::uint32_t g = 0; g < tiles.heads.heads; ++g) {
        const std::size_t head = std::size_t{tiles.head(t)} * tiles.heads.heads + g;
        std::copy_n(queries.row(i) + head * s.key_dim, s.key_dim, rotated);
        turn_query(l, i, rotated);
        const std::size_t lane = g * tiles.tokens + (i - tiles.first_token(t));
        for (std::uint32_t d = 0; d < s.key_dim; ++d) to[d * tiles.lanes + lane] = rotated[d];
      }
    std::fill_n(tile.max, tiles.lanes, -std::numeric_limits<float>::infinity());
    std::fill_n(tile.sum, tiles.lanes * (1 + s.value_dim), 0.0f);
  });
}

// Calls body(t, tile) for every tile, on all workers.
template <typename Body>
void KvCache::Impl::for_tiles(const QueryTiles& tiles, const Body& body) {
  workers->parallel(tiles.count, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t t = first; t < last; ++t) body(t, tiles[t]);
  });
}

void KvCache::Impl::tiles_read_sinks(LayerId l, const QueryTiles& tiles, const StopSign& stop) {
  const LayerState& layer = layer_state(rows[0].timeline, l);
  const RawRows sinks =
      layer.sinks.view(0, std::min(plan.layers[index(l)].sinks, tiles.first_position + tiles.rows));
  if (sinks.rows == 0) return;
  for_tiles(tiles, [&](std::size_t t, const QueryTile& tile) {
    for (std::uint32_t at = 0; at < sinks.rows && !stop.seen(); at += kFoldRows) {
      const RawFold fold(sinks, tiles.head(t), at,
                         std::min<std::uint32_t>(kFoldRows, sinks.rows - at));
      cpu->attend.attend_tile(tile, tiles.heads, fold.fold, {true, at, 0},
                              scratch_here(tiles.heads));
    }
  });
}

// Asks for every row of the timeline's runs: a list a KV head. False: there is none.
bool KvCache::Impl::list_runs(LayerId l) {
  const LayerState& layer = layer_state(rows[0].timeline, l);
  const std::uint32_t kv_heads = spec(l).kv_heads;
  if (read_lists.size() < kv_heads) read_lists.resize(kv_heads);
  requests.clear();
  for (std::uint32_t h = 0; h < kv_heads; ++h) {
    read_lists[h].take_all(layer.runs.size());
    requests.push_back({h, layer.runs, &read_lists[h]});
  }
  return !layer.runs.empty();
}

Status KvCache::Impl::tiles_read_runs(LayerId l, const QueryTiles& tiles, const StopSign& stop) {
  if (!list_runs(l)) return {};
  TL_TRY(reader->start(index(l), FoldOrder::in_list));
  TL_TRY(reader->add(requests));
  while (true) {
    TL_TRY_ASSIGN(const auto wave, reader->next());
    if (wave.empty()) return {};
    damaged.assign(wave.size(), 0);
    workers->parallel(wave.size(), 1, [&](std::size_t first, std::size_t last) {
      for (std::size_t f = first; f < last; ++f) damaged[f] = !verify(wave[f]);
    });
    for (std::size_t f = 0; f < wave.size(); ++f)
      if (damaged[f]) TL_TRY(reader->read_again(wave[f]));
    for_tiles(tiles, [&](std::size_t t, const QueryTile& tile) {
      for (const ReadyFold& ready : wave)
        if (ready.list == tiles.head(t) && !stop.seen())
          cpu->attend.attend_tile(tile, tiles.heads, ready.fold, {}, scratch_here(tiles.heads));
    });
    TL_TRY(stop.check());
  }
}

// The tail and the step's own rows.
Status KvCache::Impl::tiles_read_span(LayerId l, const RawRows& raw, const QueryTiles& tiles,
                                      const StopSign& stop) {
  const std::uint32_t window = spec(l).window, sinks = plan.layers[index(l)].sinks;
  const std::uint32_t end = raw.first_position + raw.rows;
  const auto fold_begin = [&](std::uint32_t position) {
    return position - (position - sinks) % kFoldRows;
  };
  for_tiles(tiles, [&](std::size_t t, const QueryTile& tile) {
    const std::uint32_t oldest = tile.position[0], newest = tile.position[tiles.tokens - 1];
    std::uint32_t at = std::max(raw.first_position, sees_from);
    if (window > 0 && oldest + 1 > at + window) at = std::max(at, fold_begin(oldest + 1 - window));
    while (at < end && at <= newest && !stop.seen()) {
      const std::uint32_t next = std::min(end, fold_begin(at) + kFoldRows);
      const RawFold fold(raw, tiles.head(t), at - raw.first_position, next - at);
      cpu->attend.attend_tile(tile, tiles.heads, fold.fold, {true, at, window},
                              scratch_here(tiles.heads));
      at = next;
    }
  });
  return stop.check();
}

void KvCache::Impl::finish_tiles(const QueryTiles& tiles, MatView<float> out) {
  const std::uint32_t value_dim = tiles.heads.value_dim;
  for_tiles(tiles, [&](std::size_t t, const QueryTile& tile) {
    for (std::uint32_t i = tiles.first_token(t); i < tiles.last_token(t); ++i)
      for (std::uint32_t g = 0; g < tiles.heads.heads; ++g) {
        const std::size_t lane = g * tiles.tokens + (i - tiles.first_token(t));
        const float scale = tile.sum[lane] > 0.0f ? 1.0f / tile.sum[lane] : 0.0f;
        float* to = out.row(i) + (std::size_t{tiles.head(t)} * tiles.heads.heads + g) * value_dim;
        for (std::uint32_t d = 0; d < value_dim; ++d)
          to[d] = tile.acc[d * tiles.lanes + lane] * scale;
      }
  });
}

Status KvCache::Impl::prefill_here(LayerId l, MatView<const float> queries, const RawRows& raw,
                                   MatView<float> out, const StopSign& stop) {
  TL_TRY_ASSIGN(const QueryTiles tiles, cut_tiles(l));
  load_tiles(l, queries, tiles);
  if (sees_from == 0) {
    tiles_read_sinks(l, tiles, stop);
    TL_TRY(tiles_read_runs(l, tiles, stop));
  }
  TL_TRY(tiles_read_span(l, raw, tiles, stop));
  finish_tiles(tiles, out);
  return {};
}

Status KvCache::Impl::prefill_attend(LayerId l, MatView<const float> queries, MatView<float> out,
                                     const StopAsked& asked) {
  const StopSign stop(asked);
  const std::uint32_t raw_first = layer_state(rows[0].timeline, l).tail_first;
  const std::uint32_t end = rows.back().position + 1;
  const RawRows raw = span.view(raw_first, end > raw_first ? end - raw_first : 0);
  TL_TRY(plan.layers[index(l)].prefilled_there ? prefill_there(l, queries, raw, out, stop)
                                               : prefill_here(l, queries, raw, out, stop));
  Pending& settled = pending_of(index(rows[0].timeline), index(l));
  {
    TL_TRY_ASSIGN(const Votes votes, count_votes(l, raw, queries));
    TL_TRY(settle(l, raw, layer_state(rows[0].timeline, l).runs, Pending::Tail::spare, &settled,
                  votes, stop, queries));
  }
  // A text of its own says nothing of what will be read of those before it.
  return sees_from > 0 ? Status() : warm_row_cache(l, queries, raw, settled.new_runs);
}

}  // namespace thermocline
