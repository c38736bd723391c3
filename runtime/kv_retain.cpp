// Under a retainer that asks who attended what: which of a prefill's rows are sealed.
#include <algorithm>
#include <bit>

#include "runtime/kv_impl.h"

namespace thermocline {

Result<KvCache::Impl::Votes> KvCache::Impl::count_votes(LayerId l, const RawRows& seen,
                                                        std::uint32_t leave,
                                                        MatView<const float> queries) {
  Votes votes;
  // A text of its own says nothing of what will be read of the rows before it.
  if (queries.empty() || method.retain->voters() == Voters::none || sees_from > 0) return votes;
  const LayerSpec& s = spec(l);
  const QuerySample sample = voting_queries(method, rows[0].position, queries.rows());
  const std::uint32_t sinks = std::min(plan.layers[index(l)].sinks, rows.back().position + 1);
  const std::size_t query_floats = std::size_t{sample.count} * s.q_heads * s.key_dim;
  // What the retainer computes with is in it too: a float for each row and query head.
  TL_TRY_ASSIGN(votes.memory,
                budget->reserve(Tier::host, Purpose::sealing,
                                voting_bytes(method, s, static_cast<std::uint32_t>(queries.rows()),
                                             seen.rows + sinks)));
  TL_TRY_ASSIGN(Buffer sampled, Buffer::create(query_floats * sizeof(float)));
  TL_TRY_ASSIGN(votes.of_head, Buffer::create(std::size_t{s.kv_heads} * leave * sizeof(float)));
  sample_queries(l, queries, sample, sampled.as<float>().data());
  Ballot ballot;
  ballot.shape = shape(l);
  ballot.sinks = layer_state(rows[0].timeline, l).sinks.view(0, sinks);
  ballot.seen = seen;
  ballot.leave = leave;
  ballot.queries = sample.count;
  ballot.first_query = sample.first;
  ballot.stride = sample.stride;
  votes.leave = leave;
  workers->parallel(s.kv_heads, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t h = first; h < last; ++h) {
      Ballot of_head = ballot;
      of_head.head = static_cast<std::uint32_t>(h);
      of_head.query = sampled.as<float>().data() + h * query_floats / s.kv_heads;
      method.retain->vote(of_head, votes.of_head.as<float>().data() + h * leave);
    }
  });
  return votes;
}

// `from` is the first of the cell's rows among those that were voted on.
Result<KvCache::Impl::KeptRows> KvCache::Impl::keep_rows(LayerId l, const RawRows& cell,
                                                         std::uint32_t from, const Votes& votes) {
  KeptRows kept;
  kept.rows = cell;
  if (votes.leave == 0) return kept;
  const std::uint32_t heads = spec(l).kv_heads, count = method.retain->kept(cell.rows, votes.leave);
  TL_CHECK(count >= 1 && count <= cell.rows);
  if (count == cell.rows) return kept;
  TL_TRY_ASSIGN(kept.memory, budget->reserve(Tier::host, Purpose::sealing,
                                             RawStore::bytes_for(cell.layout, heads, count)));
  TL_TRY(kept.store.reshape(cell.layout, heads, count));
  kept.which.resize(std::size_t{heads} * count);
  std::vector<RowSet> taken((cell.rows + kBlockRows - 1) / kBlockRows);
  TopRowsScratch scratch;
  for (std::uint32_t h = 0; h < heads; ++h) {
    const float* of_head = votes.of_head.as<float>().data() + std::size_t{h} * votes.leave + from;
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
