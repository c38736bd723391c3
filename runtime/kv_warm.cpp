// What a row cache holds when a prefill ends. Decode reads much the same rows step after step, and
// the last rows of a prompt read what its answer will: the selector is asked what they would have
// picked, and the rows that most of them pick are put into the cache, while all rows are in memory.
#include <algorithm>
#include <bit>

#include "runtime/kv_impl.h"

namespace thermocline {
namespace {

// Prompt rows that are asked. Choosing for one costs about half of what a prefill spends on a row,
// so one in 128 is within half a hundredth of it.
constexpr std::size_t kMostAsked = 32;
constexpr std::size_t kRowsForEach = 128;

struct Picked {  // by how many, and which row of all runs
  std::uint32_t times = 0, row = 0;
};

std::uint32_t rows_of(std::span<const Run> runs) {
  std::uint32_t rows = 0;
  for (const Run& run : runs) rows += run.rows->rows;
  return rows;
}

void count_picks(std::span<const Run> runs, const ReadList& list, std::uint8_t* times) {
  for (const Read& read : list.reads) {
    if (read.form != Form::rows || read.everything) continue;
    const std::uint32_t first = rows_of(runs.first(read.run));
    for (std::uint32_t p = read.first; p < read.last; ++p)
      for (RowSet left = list.picks[p].rows; left != 0; left &= left - 1)
        ++times[first + list.picks[p].block * kBlockRows +
                static_cast<std::uint32_t>(std::countr_zero(left))];
  }
}

// The `most` that were picked most often, the best last; of equals the lower rows.
std::vector<Picked> most_picked(std::span<const std::uint8_t> times, std::uint32_t most) {
  std::vector<Picked> picked;
  for (std::uint32_t row = 0; row < times.size(); ++row)
    if (times[row] > 0) picked.push_back({times[row], row});
  std::sort(picked.begin(), picked.end(), [](const Picked& a, const Picked& b) {
    return a.times != b.times ? a.times < b.times : a.row > b.row;
  });
  if (picked.size() > most) picked.erase(picked.begin(), picked.end() - most);
  return picked;
}

}  // namespace

Status KvCache::Impl::warm_row_cache(LayerId l, MatView<const float> queries, const RawRows& raw,
                                     std::span<const Run> sealed_now) {
  const std::uint32_t capacity = table->row_cache_rows(l);
  if (sealed_now.empty()) return {};
  std::vector<Run> runs = layer_state(rows[0].timeline, l).runs;
  runs.insert(runs.end(), sealed_now.begin(), sealed_now.end());
  const std::uint32_t held = rows_of(runs);
  if (capacity == 0 || held <= capacity) return {};  // there is none; it holds them all
  // There is nothing here to choose by; what a device misses first comes to be here.
  if (plan.layers[index(l)].chosen_there()) return {};
  const std::uint32_t kv_heads = spec(l).kv_heads;
  TL_TRY_ASSIGN(const std::vector<std::uint8_t> times, count_last_picks(l, queries, runs));
  table->begin_warming(l);
  workers->parallel(kv_heads, 1, [&](std::size_t from, std::size_t to) {
    for (std::size_t h = from; h < to; ++h) {
      const auto head = static_cast<std::uint32_t>(h);
      for (const Picked& picked : most_picked(std::span(times).subspan(h * held, held), capacity)) {
        std::uint32_t row = picked.row;
        const Run* run = runs.data();
        for (; row >= run->rows->rows; ++run) row -= run->rows->rows;
        const bool in_memory = run >= runs.data() + (runs.size() - sealed_now.size());
        std::byte* to_row = table->cache_row(
            *run->rows, head, row,
            in_memory ? PageTable::Absent::takes_a_slot : PageTable::Absent::stays_away);
        if (!to_row) continue;
        const std::uint32_t at = run->rows->position(head, row) - raw.first_position;
        method.compress.encode(raw.part(at, 1), head, {}, *run->rows, row, to_row);
      }
    }
  });
  return {};
}

// How often the last rows of the step pick each row of `runs`: [KV head][row].
Result<std::vector<std::uint8_t>> KvCache::Impl::count_last_picks(LayerId l,
                                                                  MatView<const float> queries,
                                                                  std::span<const Run> runs) {
  const LayerSpec& s = spec(l);
  const HeadShape heads = shape(l);
  const std::size_t asked = std::clamp<std::size_t>(rows.size() / kRowsForEach, 1, kMostAsked);
  const std::size_t row_floats = std::size_t{s.q_heads} * s.key_dim;
  // What the tiles had their queries in is free now, and as long as all of them.
  TL_TRY_ASSIGN(float* rotated, tile_query_scratch.floats(asked * row_floats));
  list_queries.clear();
  for (std::size_t r = rows.size() - asked; r < rows.size(); ++r, rotated += row_floats) {
    std::copy_n(queries.row(r), row_floats, rotated);
    for (std::uint32_t h = 0; h < s.q_heads; ++h) turn_query(l, r, rotated + h * s.key_dim);
    // Without what lies beside sealed rows: that shifts how query heads are weighed, a little.
    for (std::uint32_t h = 0; h < s.kv_heads; ++h)
      list_queries.push_back(
          {h, rows[r].position + 1, rotated + h * heads.heads * s.key_dim, {}, 0, runs});
  }
  const std::uint32_t held = rows_of(runs);
  std::vector<std::uint8_t> times(std::size_t{s.kv_heads} * held);
  // A few at a time: what is picked is counted and forgotten.
  const Workers::Attention attention(*workers);
  const std::size_t batch = 2 * static_cast<std::size_t>(workers->threads());
  if (read_lists.size() < batch) read_lists.resize(batch);
  choices.assign(batch, {});
  for (std::size_t first = 0; first < list_queries.size(); first += batch) {
    const std::size_t n = std::min(batch, list_queries.size() - first);
    workers->parallel(n, 1, [&](std::size_t from, std::size_t to) {
      for (std::size_t i = from; i < to; ++i) {
        const LayerQuery query{l, heads, {&list_queries[first + i], 1}};
        choices[i].cost = method.select->choose(query, *workers, {&read_lists[i], 1});
      }
    });
    for (std::size_t i = 0; i < n; ++i) {
      TL_TRY(choices[i].cost);
      count_picks(runs, read_lists[i],
                  times.data() + std::size_t{list_queries[first + i].head} * held);
    }
  }
  return times;
}

}  // namespace thermocline
