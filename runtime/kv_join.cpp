// Joining: short segments that steps have left become one, layer after layer.
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
    const std::vector<Run>& runs = state.layers[joining[turn].front()].runs;
    const auto rows_of = [&](std::size_t i) { return runs[i].rows->rows; };
    std::uint32_t sealed = 0;
    for (const Run& run : runs) sealed += run.rows->rows;
    const auto joint = next_joint(method, runs.size(), rows_of,
                                  segment_from(newest_cell(method, sealed), runs.size(), rows_of));
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
  for (const Run& run : std::span(runs).subspan(joint.first, joint.count))
    TL_TRY(read_back(l, run, first, first + joint.rows));
  const Run* const before = joint.first > 0 ? &runs[joint.first - 1] : nullptr;
  TL_TRY_ASSIGN(Run run, form(l, span.view(first, joint.rows), before));
  pending_of(t, layer).joined = Joined{joint, std::move(run)};
  return {};
}

}  // namespace thermocline
