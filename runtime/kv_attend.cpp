// Decode: each row of the step is its own query. Steady rows first, since selecting needs to know
// how much of the attention they already have; then what was selected, in waves; then the merge.
#include <algorithm>

#include "retrieval/rows_read.h"
#include "runtime/kv_impl.h"
#include "runtime/raw_fold.h"

namespace thermocline {
Status KvCache::Impl::attend(LayerId l, MatView<const float> queries, MatView<float> out) {
  const Workers::Attention attention(*workers);  // these loops are short
  const LayerSpec& s = spec(l);
  const std::size_t lists = rows.size() * s.kv_heads;
  const std::size_t row_floats = std::size_t{s.q_heads} * s.key_dim;
  TL_TRY_ASSIGN(float* rotated, query_scratch.floats(rows.size() * row_floats));
  for (std::size_t r = 0; r < rows.size(); ++r) {
    float* to = rotated + r * row_floats;
    std::copy_n(queries.row(r), row_floats, to);
    for (std::uint32_t h = 0; h < s.q_heads; ++h) turn_query(l, r, to + h * s.key_dim);
  }
  list_steady(l);
  TL_TRY(attend_steady(l, rotated));
  if (plan.layers[index(l)].seals) TL_TRY(attend_runs(l, rotated));
  if (plan.layers[index(l)].votes_bytes > 0) vote_on_tails(l, rotated);
  if (observer) tell_observer(l, rotated);

  const HeadShape heads = shape(l);
  for (std::size_t list = 0; list < lists; ++list) {
    const std::size_t row = list / s.kv_heads, head = list % s.kv_heads;
    for (std::uint32_t g = 0; g < heads.heads; ++g)
      finish(steady_states[list * heads.heads + g],
             out[row].subspan((head * heads.heads + g) * s.value_dim, s.value_dim));
  }
  return {};
}

KvCache::Impl::SteadyRows KvCache::Impl::steady_of(LayerId l, std::size_t r) {
  const std::uint32_t window = spec(l).window, end = rows[r].position + 1;
  SteadyRows steady;
  steady.sinks = std::min(plan.layers[index(l)].sinks, end);
  steady.first = layer_state(rows[r].timeline, l).tail_first;
  if (window > 0 && end > window) steady.first = std::max(steady.first, end - window);
  steady.tail = end > steady.first ? end - steady.first : 0;
  return steady;
}

// Sinks, then the tail up to the row's own position, in folds of kFoldRows.
void KvCache::Impl::list_steady(LayerId l) {
  const LayerSpec& s = spec(l);
  steady_folds.clear();
  first_partial.clear();
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const LayerState& layer = layer_state(rows[r].timeline, l);
    const std::uint32_t end = rows[r].position + 1;
    const auto [sink_rows, first, tail_rows] = steady_of(l, r);
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
                         raw.fold, nullptr, partials.data() + f * heads.heads);
    }
  });
  for (std::size_t f = 0; f < steady_folds.size(); ++f)
    for (std::uint32_t g = 0; g < heads.heads; ++g)
      cpu->attend.merge(partials[f * heads.heads + g], s.value_dim,
                        &steady_states[steady_folds[f].list * heads.heads + g]);
  for (std::size_t list = 0; list < lists; ++list) {
    const std::uint32_t length = rows[list / s.kv_heads].position + 1;
    counted.rows_held += s.window > 0 ? std::min(length, s.window) : length;
    for (std::uint32_t f = first_partial[list]; f < first_partial[list + 1]; ++f) {
      const SteadyFold& steady = steady_folds[f];
      counted.rows_read += steady.count;
      counted.host_bytes_read += std::uint64_t{steady.count} * steady.rows.layout.bytes();
    }
  }
  return {};
}

// Merges into steady_states, in list order, what the selector asks for in the sealed runs. Lists
// are chosen in batches: while one is, what those before it ask for is attended, or on its way.
Status KvCache::Impl::attend_runs(LayerId l, const float* rotated) {
  if (!list_queries_of(l, rotated)) return {};
  if (plan.layers[index(l)].chosen_there()) return attend_chosen_there(l);
  const std::size_t lists = list_queries.size();
  TL_TRY(drop_fetched());
  TL_TRY(reader->start(index(l), FoldOrder::any, DeviceRows::stay));
  first_partial.assign(1, 0);
  partials.clear();
  // At least two batches, unless there are threads for all lists at once; no more, since each has
  // an end that is waited for.
  const auto threads = static_cast<std::size_t>(workers->threads());
  const bool everything = method.select->facts().everything;  // nothing to choose
  const std::size_t batch =
      everything ? lists : (lists + 2 * threads - 1) / (2 * threads) * threads;
  for (std::size_t first = 0; first < lists; first += batch) {
    const std::size_t last = std::min(lists, first + batch);
    TL_TRY_ASSIGN(const auto wave, reader->ready());
    TL_TRY(choose_and_attend(l, first, last, wave));
    TL_TRY(plan_reads(l, first, last));
  }
  TL_TRY_ASSIGN(const std::size_t begun, begin_on_device(l));
  if (everything) expect_next(l);
  while (true) {
    TL_TRY_ASSIGN(const auto wave, reader->next());
    if (wave.empty()) break;
    TL_TRY(choose_and_attend(l, lists, lists, wave));
  }
  TL_TRY(finish_on_device(l, begun));
  TL_TRY(finish_fetched(l));
  merge_partials(l);
  count_reads();
  return {};
}

// False if no list has a sealed run.
bool KvCache::Impl::list_queries_of(LayerId l, const float* rotated) {
  const LayerSpec& s = spec(l);
  const HeadShape heads = shape(l);
  const std::size_t lists = rows.size() * s.kv_heads;
  if (read_lists.size() < lists) read_lists.resize(lists);
  choices.assign(lists, {});
  list_queries.clear();
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
  lend_selections(l);
  return any;
}

// To a selector that remembers, or shares: what it finds of selections and where it leaves them.
void KvCache::Impl::lend_selections(LayerId l) {
  const SelectorFacts facts = method.select->facts();
  const std::uint32_t kv_heads = spec(l).kv_heads;
  if (facts.remembers)
    for (std::size_t list = 0; list < list_queries.size(); ++list) {
      const Token& row = rows[list / kv_heads];
      std::vector<SelectionMemory>& of_heads = layer_state(row.timeline, l).selections;
      if (of_heads.empty()) continue;  // the text is too short for a row to be sealed
      SelectionMemory& memory = of_heads[list % kv_heads];
      if (memory.now.made) list_queries[list].kept = &memory.now;
      const std::uint32_t last = timeline(row.timeline).length + advanced[index(row.timeline)] - 1;
      if (row.position == last) list_queries[list].keep = &memory.next;
    }
  if (facts.shares) {
    if (shared_heads != kv_heads)
      for (KeptSelection& of_other_heads : shared_selections) of_other_heads.forget();
    shared_heads = kv_heads;
    if (shared_selections.size() < list_queries.size())
      shared_selections.resize(list_queries.size());
    for (std::size_t list = 0; list < list_queries.size(); ++list)
      list_queries[list].shared = &shared_selections[list];
  }
}

void KvCache::Impl::choose(LayerId l, std::size_t list) {
  const Stopwatch watch(&choices[list].ms);
  const LayerQuery query{l, shape(l), {&list_queries[list], 1}};
  choices[list].cost = method.select->choose(query, *workers, {&read_lists[list], 1});
}

// Chooses for the lists [first, last), and attends a wave of folds, or has a device do so: as many
// at a time as a launch takes, the lists with the first of them.
Status KvCache::Impl::choose_and_attend(LayerId l, std::size_t first, std::size_t last,
                                        std::span<const ReadyFold> wave) {
  if (!plan.layers[index(l)].fetched || wave.empty())
    return choose_and_take(l, first, last, wave, {});
  while (!wave.empty()) {
    TL_TRY_ASSIGN(FetchLaunch* const launch, free_launch(l));
    const std::size_t folds = address(l, wave, launch);
    TL_TRY(choose_and_take(l, first, last, wave.first(folds), launch->destinations()));
    TL_TRY(begin_launch(l, launch));
    wave = wave.subspan(folds);
    first = last;
  }
  return {};
}

// Of the wave each fold is taken by some thread, its pages verified there first: attended, or
// packed where it is to be sent from. Damaged ones are read once more.
Status KvCache::Impl::choose_and_take(LayerId l, std::size_t first, std::size_t last,
                                      std::span<const ReadyFold> wave,
                                      std::span<std::byte* const> destinations) {
  const HeadShape heads = shape(l);
  const auto take = [&](std::size_t f, std::size_t next) {
    const ReadyFold& ready = wave[f];
    std::byte* const to = destinations.empty() ? nullptr : destinations[f];
    if (to) return pack_rows(ready, to);
    cpu->attend.attend(list_queries[ready.list].query, heads, ready.fold,
                       next < wave.size() ? &wave[next].fold : nullptr,
                       partials.data() + (first_partial[ready.list] + ready.ordinal) * heads.heads);
  };
  damaged.assign(wave.size(), 0);
  // Choosing takes longer than a fold, so it is begun first.
  const std::size_t lists = last - first;
  const auto ahead = static_cast<std::size_t>(workers->threads());
  workers->parallel(lists + wave.size(), 1, [&](std::size_t from, std::size_t to) {
    for (std::size_t i = from; i < to; ++i) {
      if (i < lists) {
        choose(l, first + i);
      } else if (verify(wave[i - lists])) {
        take(i - lists, i - lists + ahead);
      } else {
        damaged[i - lists] = 1;
      }
    }
  });
  for (std::size_t list = first; list < last; ++list) TL_TRY(choices[list].cost);
  for (std::size_t f = 0; f < wave.size(); ++f) {
    if (!damaged[f]) continue;
    TL_TRY(reader->read_again(wave[f]));
    take(f, wave.size());
  }
  return {};
}

// Has what was chosen for the lists [first, last) read, and makes room for the states of its folds.
Status KvCache::Impl::plan_reads(LayerId l, std::size_t first, std::size_t last) {
  const HeadShape heads = shape(l);
  requests.clear();
  for (std::size_t list = first; list < last; ++list)
    requests.push_back({list_queries[list].head, list_queries[list].runs, &read_lists[list]});
  TL_TRY(reader->add(requests));
  const std::size_t before = steady_states.size() + partials.size();
  for (std::size_t list = first; list < last; ++list)
    first_partial.push_back(first_partial.back() + reader->folds(static_cast<std::uint32_t>(list)));
  partials.resize(std::size_t{first_partial.back()} * heads.heads);
  damaged.reserve(first_partial.back());
  for (FetchLaunch& launch : fetch_launches) launch.reserve(first_partial.back());
  const std::size_t states = steady_states.size() + partials.size();
  // It may lie elsewhere now, and the states' vectors with it.
  TL_TRY_ASSIGN(float* acc,
                partial_scratch.floats(states * heads.value_dim, before * heads.value_dim));
  for (std::vector<AttnState>* of : {&steady_states, &partials})
    for (AttnState& state : *of) {
      state.acc = acc;
      acc += heads.value_dim;
    }
  return {};
}

// What reads everything will read the next layer, or, after the last, the first one in a next step
// of these timelines: the disk need not rest while a layer ends and another begins.
void KvCache::Impl::expect_next(LayerId l) {
  const auto layers = static_cast<std::uint32_t>(options.layers.size());
  std::uint32_t next = (index(l) + 1) % layers;
  while (!plan.layers[next].seals) next = (next + 1) % layers;
  const std::uint32_t kv_heads = options.layers[next].kv_heads;
  const std::size_t lists = rows.size() * kv_heads;
  if (expected_lists.size() < lists) expected_lists.resize(lists);
  requests.clear();
  for (std::size_t list = 0; list < lists; ++list) {
    const LayerState& layer = layer_state(rows[list / kv_heads].timeline, LayerId{next});
    expected_lists[list].take_all(layer.runs.size());
    requests.push_back(
        {static_cast<std::uint32_t>(list % kv_heads), layer.runs, &expected_lists[list]});
  }
  reader->expect(next, FoldOrder::any, DeviceRows::stay, requests);
}

void KvCache::Impl::merge_partials(LayerId l) {
  const HeadShape heads = shape(l);
  workers->parallel(list_queries.size(), 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t list = first; list < last; ++list)
      for (std::uint32_t f = first_partial[list]; f < first_partial[list + 1]; ++f)
        for (std::uint32_t g = 0; g < heads.heads; ++g)
          cpu->attend.merge(partials[std::size_t{f} * heads.heads + g], heads.value_dim,
                            &steady_states[list * heads.heads + g]);
  });
}

// What choosing and attending in the runs took, of all lists.
void KvCache::Impl::count_reads() {
  for (std::size_t list = 0; list < list_queries.size(); ++list) {
    counted.index_bytes_read += choices[list].cost->index_bytes;
    counted.select_ms += choices[list].ms;
    const std::span<const Run> runs = list_queries[list].runs;
    counted.rows_read += rows_read(runs, read_lists[list], Form::rows);
    counted.summaries_read += rows_read(runs, read_lists[list], Form::summaries);
    counted.codes_read += rows_read(runs, read_lists[list], Form::codes);
  }
}

}  // namespace thermocline
