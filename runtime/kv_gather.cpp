// Layers that are fitted together: their rows wait here, where their segments are formed, until the
// last of the layers has its own. All have one fit then, as if they were one layer with the heads
// of all.
#include <algorithm>

#include "runtime/kv_impl.h"

namespace thermocline {
namespace {

// [head of all segments][row]: where it is stored, as in Segment. Empty: all are in order.
std::vector<std::uint16_t> offsets_of(std::span<const std::shared_ptr<Segment>> segments) {
  std::vector<std::uint16_t> offsets;
  if (std::all_of(segments.begin(), segments.end(),
                  [](const auto& s) { return s->offset.empty(); }))
    return offsets;
  for (const auto& segment : segments)
    for (std::uint32_t h = 0; h < segment->heads; ++h)
      for (std::uint32_t r = 0; r < segment->rows; ++r)
        offsets.push_back(
            static_cast<std::uint16_t>(segment->position(h, r) - segment->first_position));
  return offsets;
}

}  // namespace

KvCache::Impl::Gathered* KvCache::Impl::join(const std::shared_ptr<Segment>& segment,
                                             std::vector<Gathered>* among) const {
  const std::uint32_t place = plan.layers[index(segment->layer)].place;
  auto found = among->end();
  if (place == 0)
    found = among->emplace(found);
  else
    found = std::find_if(among->begin(), among->end(), [&](const Gathered& of) {
      const Segment& first = *of.segments.front();
      return of.segments.size() == place && first.first_position == segment->first_position &&
             first.rows == segment->rows;
    });
  if (found == among->end()) return nullptr;
  found->segments.push_back(segment);
  return &*found;
}

bool KvCache::Impl::complete(const Gathered& of) const {
  return of.segments.size() == plan.layers[index(of.segments.front()->layer)].together;
}

Status KvCache::Impl::gather(const RawRows& raw, Side side, const Formation& formation,
                             Gathered* into) {
  const Segment& segment = *into->segments.back();
  const CachePlan::Layer& planned = plan.layers[index(segment.layer)];
  const std::uint32_t heads = segment.heads, all_heads = planned.together * heads;
  const std::uint32_t row_bytes = raw.channels(side) * sizeof(f16);
  if (planned.place == 0) {
    RowLayout layout;
    (side == Side::keys ? layout.key_bytes : layout.value_bytes) = row_bytes;
    TL_TRY_ASSIGN(into->memory, budget->reserve(Tier::host, Purpose::sealing,
                                                RawStore::bytes_for(layout, all_heads, raw.rows)));
    TL_TRY_ASSIGN(into->rows, RawStore::create(layout, all_heads, raw.rows));
    into->always.resize(all_heads);
  }
  const std::uint32_t first_head = planned.place * heads;
  workers->parallel(heads, 1, [&](std::size_t first, std::size_t end) {
    for (auto h = static_cast<std::uint32_t>(first); h < end; ++h)
      for (std::uint32_t r = 0; r < raw.rows; ++r)
        std::memcpy(into->rows.row(first_head + h, r), raw.side(side, h, r), row_bytes);
  });
  std::copy(formation.always.begin(), formation.always.end(), into->always.begin() + first_head);
  return {};
}

Status KvCache::Impl::fit_layers(const RawRows& raw, const Formation& formation,
                                 const Segment* before, const std::shared_ptr<Segment>& segment) {
  const std::optional<Side> side = method.side_of_layers();
  if (!side) return {};
  Gathered* const joined = join(segment, &gathered);
  TL_CHECK(joined);  // what leaves a tail and how that is cut is the same in all layers
  TL_TRY(gather(raw, *side, formation, joined));
  if (!complete(*joined)) return {};
  const std::vector<std::uint16_t> offsets = offsets_of(joined->segments);
  const std::vector<std::uint32_t> order(offsets.begin(), offsets.end());  // no row was dropped
  const Fitting fitting{*side,
                        joined->rows.view(raw.first_position, raw.rows),
                        order,
                        joined->always,
                        rotation_of(segment->layer, *side),
                        before ? &before->fit(*side) : nullptr,
                        offsets};
  TL_TRY_ASSIGN(const SegmentFit fit,
                fit_side(segment->layer, *method.compress.of(*side).fitter(), fitting));
  share_fit(fit, *side, joined->segments);
  gathered.erase(gathered.begin() + (joined - gathered.data()));
  return {};
}

void KvCache::Impl::share_fit(const SegmentFit& fit, Side side,
                              std::span<const std::shared_ptr<Segment>> segments) {
  std::uint32_t first_head = 0;
  for (const auto& segment : segments) {
    SegmentFit& own = segment->fits[static_cast<std::size_t>(side)];
    own = fit;
    own.first_head = first_head;
    first_head += segment->heads;
  }
}

}  // namespace thermocline
