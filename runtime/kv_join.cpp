// Joining: short segments that steps have left become one, layer after layer.
#include <algorithm>

#include "runtime/kv_impl.h"

namespace thermocline {

// A step asks one layer for each position that it adds, in turn: so it depends on the text alone
// when a layer's turn comes, and what is held twice meanwhile is one segment of one layer. Layers
// that share a selection are cut alike, and take their turn together.
Status KvCache::Impl::join_runs(std::uint32_t t) {
  if (!method.joins() || joining.empty()) return {};
  const TimelineState& state = *timelines[t];
  for (std::uint32_t n = 0; n < advanced[t]; ++n) {
    const std::size_t turn = (state.length + n) % joining.size();
    const LayerState& layer = state.layers[joining[turn].front()];
    const auto rows_of = [&](std::size_t i) { return layer.positions_of(i); };
    const std::size_t count = layer.runs.size();
    const std::uint32_t first = newest_cell(method, layer.tail_first - method.sink);
    const auto joint = next_joint(method, count, rows_of, segment_from(first, count, rows_of));
    if (!joint) continue;
    for (const std::uint32_t l : joining[turn]) TL_TRY(join(t, l, *joint));
    return {};
  }
  return {};
}

Status KvCache::Impl::join(std::uint32_t t, std::uint32_t layer, const Joint& joint) {
  const Stopwatch watch(&counted.seal_ms);
  const LayerId l{layer};
  const std::vector<Run>& runs = timelines[t]->layers[layer].runs;
  const std::uint32_t first = runs[joint.first].rows->first_position;
  TL_TRY(shape_span(l, joint.rows));
  const auto joined = std::span(runs).subspan(joint.first, joint.count);
  for (const Run& run : joined) TL_TRY(read_back(l, run, first, first + joint.rows));
  const std::vector<std::uint32_t> which = close_up(l, joined, joint);
  const std::size_t kept = which.empty() ? joint.rows : which.size() / spec(l).kv_heads;
  const Run* const before = joint.first > 0 ? &runs[joint.first - 1] : nullptr;
  TL_TRY_ASSIGN(Run run,
                form(l, span.view(first, static_cast<std::uint32_t>(kept)), before, which));
  pending_of(t, layer).joined = Joined{joint, std::move(run)};
  return {};
}

std::vector<std::uint32_t> KvCache::Impl::close_up(LayerId l, std::span<const Run> runs,
                                                   const Joint& joint) {
  std::vector<std::uint32_t> which;
  std::size_t count = 0;
  for (const Run& run : runs) count += run.rows->rows;
  if (count == joint.rows) return which;
  const std::uint32_t first = runs.front().rows->first_position;
  const std::size_t row_bytes = plan.layers[index(l)].raw.bytes();
  which.reserve(spec(l).kv_heads * count);
  for (std::uint32_t h = 0; h < spec(l).kv_heads; ++h) {
    for (const Run& run : runs)
      for (std::uint32_t row = 0; row < run.rows->rows; ++row)
        which.push_back(run.rows->position(h, row) - first);
    const auto of_head = std::span(which).last(count);
    std::ranges::sort(of_head);  // a selector may have ordered them otherwise
    for (std::uint32_t row = 0; row < count; ++row)
      if (of_head[row] != row) std::copy_n(span.row(h, of_head[row]), row_bytes, span.row(h, row));
  }
  return which;
}

}  // namespace thermocline
