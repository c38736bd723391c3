// Decode: each row of the step is its own query. Steady rows first, since selecting needs to know
// how much of the attention they already have; then what was selected, in waves; then the merge.
#include <algorithm>

#include "runtime/kv_impl.h"
#include "runtime/raw_fold.h"

namespace thermocline {
Status KvCache::Impl::attend(LayerId l, MatView<const float> queries, MatView<float> out) {
  const LayerSpec& s = spec(l);
  const std::size_t lists = rows.size() * s.kv_heads;
  const std::size_t row_floats = std::size_t{s.q_heads} * s.key_dim;
  TL_TRY_ASSIGN(float* rotated, query_scratch.floats(rows.size() * row_floats));
  for (std::size_t r = 0; r < rows.size(); ++r) {
    float* to = rotated + r * row_floats;
    std::copy_n(queries.row(r), row_floats, to);
    for (std::uint32_t h = 0; h < s.q_heads; ++h) rotate(l, r, to + h * s.key_dim);
    cpu->dense.scale(s.scale, row_floats, to);
  }
  list_steady(l);
  TL_TRY(attend_steady(l, rotated));
  if (plan.layers[index(l)].seals) TL_TRY(attend_runs(l, rotated));

  const HeadShape heads = shape(l);
  for (std::size_t list = 0; list < lists; ++list) {
    const std::size_t row = list / s.kv_heads, head = list % s.kv_heads;
    for (std::uint32_t g = 0; g < heads.heads; ++g)
      finish(steady_states[list * heads.heads + g],
             out[row].subspan((head * heads.heads + g) * s.value_dim, s.value_dim));
  }
  return {};
}

// Sinks, then the tail up to the row's own position, in folds of kFoldRows.
void KvCache::Impl::list_steady(LayerId l) {
  const LayerSpec& s = spec(l);
  const std::uint32_t sinks = plan.layers[index(l)].sinks;
  steady_folds.clear();
  first_partial.clear();
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const LayerState& layer = layer_state(rows[r].timeline, l);
    const std::uint32_t end = rows[r].position + 1;
    const std::uint32_t sink_rows = std::min(sinks, end);
    std::uint32_t first = layer.tail_first;
    if (s.window > 0 && end > s.window) first = std::max(first, end - s.window);
    const std::uint32_t tail_rows = end > first ? end - first : 0;
    for (std::uint32_t h = 0; h < s.kv_heads; ++h) {
      const auto list = static_cast<std::uint32_t>(r * s.kv_heads + h);
      first_partial.push_back(static_cast<std::uint32_t>(steady_folds.size()));
      for (std::uint32_t at = 0; at < sink_rows; at += kFoldRows)
        steady_folds.push_back({list, layer.sinks.view(0, sink_rows), at,
                                std::min<std::uint32_t>(kFoldRows, sink_rows - at)});
      for (std::uint32_t at = 0; at < tail_rows; at += kFoldRows)
        steady_folds.push_back({list, layer.tail.view(layer.tail_first, end - layer.tail_first),
                                first - layer.tail_first + at,
                                std::min<std::uint32_t>(kFoldRows, tail_rows - at)});
    }
  }
  first_partial.push_back(static_cast<std::uint32_t>(steady_folds.size()));
}

// Leaves in steady_states [list][query head of the group] each list's state over its steady rows.
Status KvCache::Impl::attend_steady(LayerId l, const float* rotated) {
  const LayerSpec& s = spec(l);
  const HeadShape heads = shape(l);
  const std::size_t lists = rows.size() * s.kv_heads;
  const std::size_t state_count = (lists + steady_folds.size()) * heads.heads;
  TL_TRY_ASSIGN(float* acc, partial_scratch.floats(state_count * s.value_dim));
  steady_states.assign(lists * heads.heads, AttnState{});
  partials.assign(steady_folds.size() * heads.heads, AttnState{});
  std::fill_n(acc, lists * heads.heads * s.value_dim, 0.0f);
  for (AttnState& state : steady_states) {
    state.acc = acc;
    acc += s.value_dim;
  }
  for (AttnState& state : partials) {
    state.acc = acc;
    acc += s.value_dim;
  }
  workers->parallel(steady_folds.size(), 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t f = first; f < last; ++f) {
      const SteadyFold& steady = steady_folds[f];
      const RawFold raw(steady.rows, steady.list % s.kv_heads, steady.first, steady.count);
      cpu->attend.attend(rotated + std::size_t{steady.list} * heads.heads * s.key_dim, heads,
                         raw.fold, partials.data() + f * heads.heads);
    }
  });
  for (std::size_t f = 0; f < steady_folds.size(); ++f)
    for (std::uint32_t g = 0; g < heads.heads; ++g)
      cpu->attend.merge(partials[f * heads.heads + g], s.value_dim,
                        &steady_states[steady_folds[f].list * heads.heads + g]);
  for (std::size_t list = 0; list < lists; ++list) {
    const std::uint32_t length = rows[list / s.kv_heads].position + 1;
    counted.rows_held += s.window > 0 ? std::min(length, s.window) : length;
    for (std::uint32_t f = first_partial[list]; f < first_partial[list + 1]; ++f)
      counted.rows_attended += steady_folds[f].count;
  }
  return {};
}

// Merges into steady_states, in list order, what the selector asks for in the sealed runs.
Status KvCache::Impl::attend_runs(LayerId l, const float* rotated) {
  const LayerSpec& s = spec(l);
  const HeadShape heads = shape(l);
  const std::size_t lists = rows.size() * s.kv_heads;
  list_queries.clear();
  if (read_lists.size() < lists) read_lists.resize(lists);
  bool any = false;
  for (std::size_t list = 0; list < lists; ++list) {
    const Token& row = rows[list / s.kv_heads];
    const LayerState& layer = layer_state(row.timeline, l);
    read_lists[list].clear();
    std::uint32_t steady_rows = 0;
    for (std::uint32_t f = first_partial[list]; f < first_partial[list + 1]; ++f)
      steady_rows += steady_folds[f].count;
    list_queries.push_back({static_cast<std::uint32_t>(list % s.kv_heads),
                            row.position + 1,
                            rotated + list * heads.heads * s.key_dim,
                            {steady_states.data() + list * heads.heads, heads.heads},
                            steady_rows,
                            layer.runs});
    any = any || !layer.runs.empty();
  }
  if (!any) return {};
  {
    const Stopwatch watch(&counted.select_ms);
    const Chosen chosen =
        method.select->choose({l, heads, list_queries}, *workers, {read_lists.data(), lists});
    counted.index_bytes_read += chosen.index_bytes;
  }
  requests.clear();
  for (std::size_t list = 0; list < lists; ++list)
    requests.push_back({list_queries[list].head, list_queries[list].runs, &read_lists[list]});
  TL_TRY(reader->start(index(l), requests, FoldOrder::any));

  std::uint32_t folds = 0;
  first_partial.clear();
  for (std::uint32_t list = 0; list < lists; ++list) {
    first_partial.push_back(folds);
    folds += reader->folds(list);
  }
  first_partial.push_back(folds);
  // The steady states' memory is at the front of the scratch: the partials follow it.
  const std::size_t steady_floats = lists * heads.heads * s.value_dim;
  const std::size_t run_floats = std::size_t{folds} * heads.heads * s.value_dim;
  TL_TRY_ASSIGN(float* acc, partial_scratch.floats(steady_floats + run_floats, steady_floats));
  for (std::size_t i = 0; i < steady_states.size(); ++i)
    steady_states[i].acc = acc + i * s.value_dim;
  partials.assign(std::size_t{folds} * heads.heads, AttnState{});
  acc += steady_floats;
  for (AttnState& state : partials) {
    state.acc = acc;
    acc += s.value_dim;
  }
  while (true) {
    TL_TRY_ASSIGN(const auto wave, reader->next());
    if (wave.empty()) break;
    TL_TRY(attend_wave(l, rotated, wave));
  }
  workers->parallel(lists, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t list = first; list < last; ++list)
      for (std::uint32_t f = first_partial[list]; f < first_partial[list + 1]; ++f)
        for (std::uint32_t g = 0; g < heads.heads; ++g)
          cpu->attend.merge(partials[std::size_t{f} * heads.heads + g], s.value_dim,
                            &steady_states[list * heads.heads + g]);
  });
  for (std::size_t list = 0; list < lists; ++list)
    for (const Read& read : read_lists[list].reads) {
      const Run& run = list_queries[list].runs[read.run];
      std::uint64_t n = 0;
      if (read.everything) {
        n = read.form == Form::rows ? run.rows->rows : run.summaries->rows;
      } else {
        for (std::uint32_t p = read.first; p < read.last; ++p)
          n += static_cast<std::uint64_t>(count(read_lists[list].picks[p].rows));
      }
      (read.form == Form::rows ? counted.rows_attended : counted.summaries_attended) += n;
    }
  return {};
}

// Each fold on some thread, its pages verified there first. Damaged ones are read once more.
Status KvCache::Impl::attend_wave(LayerId l, const float* rotated,
                                  std::span<const ReadyFold> wave) {
  const HeadShape heads = shape(l);
  const auto attend_fold = [&](const ReadyFold& ready) {
    cpu->attend.attend(rotated + std::size_t{ready.list} * heads.heads * heads.key_dim, heads,
                       ready.fold,
                       partials.data() + (first_partial[ready.list] + ready.ordinal) * heads.heads);
  };
  damaged.assign(wave.size(), 0);
  workers->parallel(wave.size(), 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t f = first; f < last; ++f) {
      if (!verify(wave[f])) {
        damaged[f] = 1;
        continue;
      }
      attend_fold(wave[f]);
    }
  });
  for (std::size_t f = 0; f < wave.size(); ++f) {
    if (!damaged[f]) continue;
    TL_TRY(reader->read_again(wave[f]));
    attend_fold(wave[f]);
  }
  return {};
}

}  // namespace thermocline
