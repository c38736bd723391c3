// What a study is shown: the rows of a timeline, and which of them a step attends.
#include <algorithm>
#include <bit>

#include "runtime/kv_impl.h"
#include "runtime/observer.h"

namespace thermocline {
namespace {

void add_picks(const ReadList& list, const Read& read, const Segment& segment, std::uint32_t head,
               std::vector<std::uint32_t>* positions) {
  if (read.everything)
    for (std::uint32_t row = 0; row < segment.rows; ++row)
      positions->push_back(segment.position(head, row));
  for (std::uint32_t p = read.first; !read.everything && p < read.last; ++p)
    for (RowSet left = list.picks[p].rows; left != 0; left &= left - 1) {
      const auto in_block = static_cast<std::uint32_t>(std::countr_zero(left));
      positions->push_back(segment.position(head, list.picks[p].block * kBlockRows + in_block));
    }
}

}  // namespace

void KvCache::Impl::tell_observer(LayerId l, const float* rotated) {
  const LayerSpec& s = spec(l);
  const std::size_t list_floats = std::size_t{shape(l).heads} * s.key_dim;
  std::vector<std::uint32_t> positions, coded;
  auto steady = steady_folds.begin();
  for (std::size_t list = 0; list < rows.size() * s.kv_heads; ++list) {
    const auto head = static_cast<std::uint32_t>(list % s.kv_heads);
    positions.clear();
    coded.clear();
    for (; steady != steady_folds.end() && steady->list == list; ++steady)
      for (std::uint32_t r = 0; r < steady->count; ++r)
        positions.push_back(steady->rows.first_position + steady->first + r);
    if (plan.layers[index(l)].seals)
      for (const Read& read : read_lists[list].reads)
        if (read.form != Form::summaries)
          add_picks(read_lists[list], read, *list_queries[list].runs[read.run].rows, head,
                    read.form == Form::rows ? &positions : &coded);
    std::sort(positions.begin(), positions.end());
    std::sort(coded.begin(), coded.end());
    std::vector<float> queries(rotated + list * list_floats, rotated + (list + 1) * list_floats);
    for (std::size_t q = 0; q < list_floats; q += s.key_dim)
      balances[index(l)].restore_query(queries.data() + q);
    observer->attended({l, rows[list / s.kv_heads], head, queries, positions, coded});
  }
}

Status KvCache::Impl::read(TimelineId id, LayerId l, std::uint32_t first, MatView<float> keys,
                           MatView<float> values) {
  if (!rows.empty())
    return fail(ErrorCode::invalid_argument,
                "read() in the middle of a step: commit() or rollback() ends it");
  if (index(l) >= options.layers.size())
    return fail(ErrorCode::invalid_argument, "read() of layer ", index(l), ", there are ",
                options.layers.size());
  const std::size_t heads = spec(l).kv_heads;
  if (keys.rows() != values.rows() || keys.cols() != heads * spec(l).key_dim ||
      values.cols() != heads * spec(l).value_dim)
    return fail(ErrorCode::invalid_argument, "read(): keys of ", keys.rows(), " x ", keys.cols(),
                " and values of ", values.rows(), " x ", values.cols(), ", the layer has ",
                heads * spec(l).key_dim, " and ", heads * spec(l).value_dim, " columns");
  const LayerState& layer = layer_state(id, l);
  const CachePlan::Layer& planned = plan.layers[index(l)];
  const std::uint64_t end = first + std::uint64_t{keys.rows()};
  if (end > timeline(id).length)
    return fail(ErrorCode::invalid_argument, "read() up to position ", end, " of a timeline of ",
                timeline(id).length);
  const bool whole = planned.seals && (!method.drops() || layer.runs.empty());
  if (!whole && first < layer.tail_first && end > planned.sinks)
    return fail(ErrorCode::unsupported, "read() of positions from ", first, " in layer ", index(l),
                ", which keeps all of those from ", layer.tail_first);
  RawStore piece;
  Reservation memory;
  const auto most = static_cast<std::uint32_t>(std::min<std::size_t>(keys.rows(), kSegmentRows));
  TL_TRY_ASSIGN(memory, budget->reserve(Tier::host, Purpose::sealing,
                                        RawStore::bytes_for(planned.raw, spec(l).kv_heads, most)));
  TL_TRY(piece.reshape(planned.raw, spec(l).kv_heads, most));
  for (std::uint32_t at = 0; at < keys.rows(); at += most) {
    const auto count = std::min(most, static_cast<std::uint32_t>(keys.rows()) - at);
    TL_TRY(read_rows(l, layer, first + at, first + at + count, &piece));
    for (std::uint32_t h = 0; h < spec(l).kv_heads; ++h)
      for (std::uint32_t r = 0; r < count; ++r) {
        const std::byte* record = piece.row(h, r);
        float* key = keys.row(at + r) + h * spec(l).key_dim;
        cpu->dense.from_half(record, spec(l).key_dim, key);
        balances[index(l)].restore(key);
        cpu->dense.from_half(record + planned.raw.key_bytes, spec(l).value_dim,
                             values.row(at + r) + h * spec(l).value_dim);
      }
  }
  return {};
}

}  // namespace thermocline
