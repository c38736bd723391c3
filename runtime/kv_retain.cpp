// Under a retainer that asks who attended what: what is given to rows of the tail, and which of
// them are sealed when they leave it.
#include <algorithm>
#include <bit>

#include "retrieval/scratch.h"
#include "runtime/kv_impl.h"

namespace thermocline {

Result<KvCache::Impl::Votes> KvCache::Impl::count_votes(LayerId l, const RawRows& seen,
                                                        MatView<const float> queries) {
  const Stopwatch watch(&counted.seal_ms);
  Votes votes;
  const CachePlan::Layer& planned = plan.layers[index(l)];
  const std::uint32_t leave =
      rows_to_leave(l, seen.first_position, seen.first_position + seen.rows);
  const bool steps_vote = planned.votes_bytes > 0;
  const std::uint32_t count = steps_vote ? seen.rows : leave;
  if (!planned.seals || method.retain->voters() == Voters::none || count == 0) return votes;
  if (sees_from > 0 && !steps_vote) return votes;
  const LayerSpec& s = spec(l);
  const QuerySample sample = voting_queries(method, rows[0].position, queries.rows());
  // A text of its own sees nothing of what is before it, and says nothing of what will be read of
  // that: it is kept, and so are its own rows.
  const std::uint32_t alone_from = std::max(sees_from, seen.first_position) - seen.first_position;
  const std::uint32_t sinks = sees_from > 0 ? 0 : std::min(planned.sinks, rows.back().position + 1);
  const std::size_t scores = std::size_t{s.q_heads} / s.kv_heads * (seen.rows + sinks);
  const std::size_t query_floats = std::size_t{sample.count} * s.q_heads * s.key_dim;
  TL_TRY_ASSIGN(votes.memory,
                budget->reserve(Tier::host, Purpose::sealing,
                                voting_bytes(method, s, static_cast<std::uint32_t>(queries.rows()),
                                             seen.rows + sinks)));
  TL_TRY_ASSIGN(Buffer sampled, Buffer::create(query_floats * sizeof(float)));
  TL_TRY_ASSIGN(Buffer scored, Buffer::create(s.kv_heads * scores * sizeof(float)));
  TL_TRY_ASSIGN(votes.counted, Buffer::create(std::size_t{s.kv_heads} * count * sizeof(float)));
  sample_queries(l, queries, sample, sampled.as<float>().data());
  LayerState& layer = layer_state(rows[0].timeline, l);
  const std::uint32_t held = steps_vote ? timeline(rows[0].timeline).tail_rows(layer) : 0;
  const std::uint32_t capacity = layer.tail.capacity();
  Ballot ballot;
  ballot.shape = shape(l);
  ballot.sinks = layer.sinks.view(0, sinks);
  ballot.seen = seen.part(alone_from, seen.rows - alone_from);
  ballot.rows = count - alone_from;
  ballot.queries = sample.count;
  ballot.first_query = sample.first;
  ballot.stride = sample.stride;
  workers->parallel(s.kv_heads, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t h = first; h < last; ++h) {
      float* of_head = votes.counted.as<float>().data() + h * count;
      if (held > 0) std::copy_n(layer.votes.now.as<float>().data() + h * capacity, held, of_head);
      std::fill(of_head + held, of_head + count, 0.0f);
      Ballot of_this = ballot;
      of_this.head = static_cast<std::uint32_t>(h);
      of_this.query = sampled.as<float>().data() + h * query_floats / s.kv_heads;
      of_this.scores = scored.as<float>().data() + h * scores;
      method.retain->vote(of_this, of_head + alone_from);
      if (steps_vote)
        std::copy(of_head + leave, of_head + count,
                  layer.votes.next.as<float>().data() + h * capacity);
    }
  });
  layer.votes.made = steps_vote;
  if (sees_from == 0) votes.of_head = votes.counted.as<float>().data();
  votes.stride = count;
  return votes;
}

// Heads are tasks, since rows of one timeline vote one after the other.
void KvCache::Impl::vote_on_tails(LayerId l, const float* rotated) {
  const LayerSpec& s = spec(l);
  const HeadShape heads = shape(l);
  workers->parallel(s.kv_heads, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t h = first; h < last; ++h)
      for (std::size_t r = 0; r < rows.size(); ++r) {
        const TimelineState& state = timeline(rows[r].timeline);
        const LayerState& layer = layer_state(rows[r].timeline, l);
        const std::uint32_t position = rows[r].position, capacity = layer.tail.capacity();
        float* votes = layer.votes.next.as<float>().data() + h * capacity;
        if (position == state.length) {
          const std::uint32_t held = state.tail_rows(layer);
          std::copy_n(layer.votes.now.as<float>().data() + h * capacity, held, votes);
          std::fill(votes + held, votes + capacity, 0.0f);
        }
        if (position < layer.tail_first) continue;
        const std::size_t list = r * s.kv_heads + h;
        Ballot ballot;
        ballot.shape = heads;
        ballot.head = static_cast<std::uint32_t>(h);
        ballot.seen = layer.tail.view(layer.tail_first, position + 1 - layer.tail_first);
        ballot.rows = ballot.seen.rows;
        ballot.queries = 1;
        ballot.first_query = position;
        ballot.query = rotated + list * heads.heads * s.key_dim;
        ballot.attended = steady_states.data() + list * heads.heads;
        ballot.scores = score_scratch.data() + h * heads.heads * capacity;
        method.retain->vote(ballot, votes);
      }
  });
  for (const Token& row : rows) layer_state(row.timeline, l).votes.made = true;
}

KvCache::Impl::Votes KvCache::Impl::tail_votes(const LayerState& layer) {
  Votes votes;
  if (!layer.votes.made) return votes;
  votes.of_head = layer.votes.next.as<float>().data();
  votes.stride = layer.tail.capacity();
  return votes;
}

Result<KvCache::Impl::KeptRows> KvCache::Impl::keep_rows(LayerId l, const RawRows& cell,
                                                         std::uint32_t from, std::uint32_t leave,
                                                         const Votes& votes) {
  KeptRows kept;
  kept.rows = cell;
  if (!votes.of_head) return kept;
  const std::uint32_t heads = spec(l).kv_heads;
  const std::uint32_t count = pass == Pass::prefill ? method.retain->kept(cell.rows, leave)
                                                    : method.retain->kept_of_steps(cell.rows);
  TL_CHECK(count >= 1 && count <= cell.rows);
  if (count == cell.rows) return kept;
  TL_TRY_ASSIGN(kept.memory, budget->reserve(Tier::host, Purpose::sealing,
                                             RawStore::bytes_for(cell.layout, heads, count)));
  TL_TRY(kept.store.reshape(cell.layout, heads, count));
  kept.which.resize(std::size_t{heads} * count);
  std::vector<RowSet> taken(set_words(cell.rows));
  TopRowsScratch scratch;
  for (std::uint32_t h = 0; h < heads; ++h) {
    const float* of_head = votes.of_head + h * votes.stride + from;
    const std::size_t found = top_rows(cpu->topk, {of_head, cell.rows}, count, &scratch, taken);
    TL_CHECK(found == count);  // no vote is negative
    std::uint32_t* to = kept.which.data() + std::size_t{h} * count;
    for (std::uint32_t word = 0; word < taken.size(); ++word)
      for (RowSet left = taken[word]; left != 0; left &= left - 1, ++to)
        *to = word * kBlockRows + static_cast<std::uint32_t>(std::countr_zero(left));
    const std::uint32_t* which = kept.which.data() + std::size_t{h} * count;
    for (std::uint32_t r = 0; r < count; ++r)
      std::copy_n(cell.row(h, which[r]), cell.layout.bytes(), kept.store.row(h, r));
  }
  kept.rows = kept.store.view(cell.first_position, count);
  return kept;
}

}  // namespace thermocline
