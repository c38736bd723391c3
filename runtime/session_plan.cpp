#include "runtime/session_plan.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/base/buffer.h"
#include "runtime/segment_bytes.h"
#include "runtime/timeline_state.h"
#include "tiers/page_table.h"
#include "tiers/store/publication.h"

namespace thermocline {

void plan_records(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                  const CachePlan::Layer& layer, const TextCuts& cuts, CachePlan* plan) {
  const auto record_of = [&](const Segment& segment) {
    return record_bytes_of(method, spec, layer, segment);
  };
  for (const auto& [rows, count] : cuts.segments())
    plan->records_bytes += options.max_timelines * count * record_of(segment_of(spec, layer, rows));
  const std::uint64_t segments = cuts.segment_count();
  const Segment longest = segment_of(spec, layer, cuts.longest_segment());
  plan->published_bytes += segments * (2 * sizeof(Extent) + sizeof(PageTable::Record));
  plan->saving_bytes += segments * (2 * sizeof(Extent) + sizeof(Segment*));
  if (longest.rows > 0)
    plan->coding_bytes =
        std::max(plan->coding_bytes,
                 record_of(longest) + gathered_bytes(method, spec, layer, cuts.most_at_once()));
  // Read back a record is there twice, as it lies in the file and as it is used.
  if (cuts.longest_held() == 0) return;
  const Segment held = segment_of(spec, layer, cuts.longest_held());
  plan->restoring_bytes = std::max(plan->restoring_bytes, 2 * record_of(held));
  plan->warming_bytes = std::max(
      plan->warming_bytes, round_up(std::uint64_t{held.rows} * held.layout.bytes(), kPageBytes));
}

void plan_publication(const CacheOptions& options, const TextCuts& cuts, CachePlan* plan) {
  const std::uint64_t text = plan->published_bytes + options.session.text_bytes +
                             std::uint64_t{options.max_positions} * sizeof(int);
  std::vector<std::uint64_t> saves;
  for (std::size_t l = 0; l < options.layers.size(); ++l) {
    const CachePlan::Layer& layer = plan->layers[l];
    const auto tails = cuts.saved_tails(options.layers[l], l, layer.tail_rows);
    saves.resize(tails.size(), text);
    for (std::size_t i = 0; i < tails.size(); ++i)
      saves[i] +=
          RawStore::bytes_for(layer.raw, options.layers[l].kv_heads, layer.sinks + tails[i]);
  }
  std::uint64_t before = 0, beside = 0;
  for (std::uint64_t& save : saves) {
    save = round_up(save, kPageBytes);
    beside = std::max(beside, std::exchange(before, save) + save);
  }
  plan->published_bytes = kSessionHeaderBytes + beside + plan->replaced_bytes;
  // The first one may be an earlier process's.
  const bool is_held = !options.course || options.course->resumed.positions > 0;
  if (is_held) plan->restoring_bytes += saves.front();
  plan->saving_bytes += *std::max_element(saves.begin() + is_held, saves.end()) + kPageBytes;
}

Status check_kept(const Method& method, const CachePlan& plan) {
  if (!method.select->facts().in_files)
    return fail(ErrorCode::unsupported, "select.by = ", method.select->name(),
                " makes an index that is not kept in files: leave --session out");
  if (method.drops())
    return fail(ErrorCode::unsupported, "retain.keep = ", method.retain->name(),
                " drops rows, and a session's file holds all: leave --session out");
  if (method.select->facts().remembers)
    return fail(ErrorCode::unsupported,
                "select.reuse = similar reads what steps before chose, which a session's file does "
                "not hold: say --method-set select.reuse=never, or leave --session out");
  for (const CachePlan::Layer& layer : plan.layers)
    if (layer.rows > 0 && !layer.in_pages())
      return fail(ErrorCode::unsupported, "place.rows = ", method.place->name(), " keeps rows in ",
                  name_of(layer.home.tier), " memory, and --session in its file: ",
                  layer.home.tier == Tier::device ? "leave --device and --kv-device out, or "
                                                  : "say --method-set place.rows=lowest, or leave ",
                  "--session", layer.home.tier == Tier::device ? "" : " out");
  return {};
}

}  // namespace thermocline
