#include "runtime/segment_bytes.h"

#include <algorithm>
#include <optional>

#include "tiers/segment_record.h"

namespace thermocline {
namespace {

// Whether what is fitted in several layers counts in this one: the last.
bool holds_fit(const CachePlan::Layer& layer) { return layer.place + 1 == layer.together; }

}  // namespace

Segment segment_of(const LayerSpec& spec, const CachePlan::Layer& layer, std::uint64_t rows) {
  Segment segment;
  segment.layout = layer.sealed;
  segment.heads = spec.kv_heads;
  segment.rows = static_cast<std::uint32_t>(rows);
  return segment;
}

std::uint64_t index_bytes_of(const Method& method, const LayerSpec& spec,
                             const CachePlan::Layer& layer, std::uint64_t rows) {
  const HeadShape shape = shape_of(spec);
  return fit_bytes_of(method, spec, layer, rows) +
         spec.kv_heads *
             (method.select->index_bytes(shape, rows) + method.select->summary_bytes(shape, rows) +
              method.select->code_bytes(shape, rows));
}

std::uint64_t fit_bytes_of(const Method& method, const LayerSpec& spec,
                           const CachePlan::Layer& layer, std::uint64_t rows) {
  std::uint64_t bytes = 0;
  for (const Side side : kSides) {
    const Fitter* const fitter = method.compress.of(side).fitter();
    if (!fitter) continue;
    const std::uint32_t layers = fitter->layers() > 1 ? layer.together : 1;
    if (layers > 1 && !holds_fit(layer)) continue;
    bytes +=
        fitter->bytes({layers * spec.kv_heads, side == Side::keys ? spec.key_dim : spec.value_dim},
                      rows, method.select->always_rows(rows));
  }
  return bytes;
}

std::uint64_t index_bytes_there(const Method& method, const LayerSpec& spec,
                                const CachePlan::Layer& layer, std::uint64_t rows) {
  const bool ordered = method.select->facts().order == RowOrder::own;
  const bool rebuilt = method.compress.of(Side::keys).fitter() != nullptr;
  return index_bytes_of(method, spec, layer, rows) +
         (ordered && rebuilt ? spec.kv_heads * rows * sizeof(Segment::offset[0]) : 0);
}

std::uint64_t fitting_bytes_of(const Method& method, const LayerSpec& spec,
                               const CachePlan::Layer& layer, std::uint64_t rows) {
  std::uint64_t bytes = 0;
  for (const Side side : kSides) {
    const Fitter* const fitter = method.compress.of(side).fitter();
    if (!fitter) continue;
    const std::uint32_t layers = fitter->layers() > 1 ? layer.together : 1;
    const std::uint32_t dim = side == Side::keys ? spec.key_dim : spec.value_dim;
    bytes = std::max(bytes, fitter->scratch_bytes({layers * spec.kv_heads, dim}, rows));
  }
  return bytes;
}

std::uint64_t gathered_bytes(const Method& method, const LayerSpec& spec,
                             const CachePlan::Layer& layer, std::uint64_t rows) {
  const std::optional<Side> side = method.side_of_layers();
  if (!side || !holds_fit(layer)) return 0;
  return layer.together * spec.kv_heads * rows *
         (*side == Side::keys ? layer.raw.key_bytes : layer.raw.value_bytes);
}

std::uint64_t record_bytes_of(const Method& method, const LayerSpec& spec,
                              const CachePlan::Layer& layer, const Segment& segment) {
  const bool ordered = method.select->facts().order == RowOrder::own;
  // And of each side's fit its kind and the lengths of its parts.
  const std::uint64_t more = index_bytes_of(method, spec, layer, segment.rows) +
                             2 * (sizeof(std::uint32_t) + 2 * sizeof(std::uint64_t));
  return SegmentRecord::bytes_for(segment, ordered, more);
}

}  // namespace thermocline
