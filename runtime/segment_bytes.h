// What segments of a layer's rows take beside the rows: what is searched, what stands for others,
// what rows share, a session's records; and what making them takes meanwhile. A codec or a selector
// that keeps more of a segment is counted here.
#pragma once

#include <cstdint>

#include "kernels/attend.h"
#include "runtime/cache_plan.h"
#include "runtime/layer_spec.h"
#include "runtime/method.h"
#include "tiers/block.h"

namespace thermocline {

inline HeadShape shape_of(const LayerSpec& spec) {
  return {spec.q_heads / spec.kv_heads, spec.key_dim, spec.value_dim};
}

// Whether there will be any: full attention, under a method that keeps what leaves the tail.
inline bool seals(const Method& method, const LayerSpec& spec) {
  return spec.window == 0 && method.retain->keeps();
}

constexpr std::uint64_t blocks_of(std::uint32_t rows) {
  return (std::uint64_t{rows} + kBlockRows - 1) / kBlockRows;
}

// One of so many rows a KV head.
Segment segment_of(const LayerSpec& spec, const CachePlan::Layer& layer, std::uint64_t rows);

// Of a layer's heads together: what is searched, the rows that stand for others, codes of rows, and
// what rows share.
std::uint64_t index_bytes_of(const Method& method, const LayerSpec& spec,
                             const CachePlan::Layer& layer, std::uint64_t rows);

// Of those, what rows share, which the host has also where a device chooses among the rows.
std::uint64_t fit_bytes_of(const Method& method, const LayerSpec& spec,
                           const CachePlan::Layer& layer, std::uint64_t rows);

// And what such a device has of them: all, and in which order rows lie whose keys it rebuilds.
std::uint64_t index_bytes_there(const Method& method, const LayerSpec& spec,
                                const CachePlan::Layer& layer, std::uint64_t rows);

// That a fitter computes with, of the side that takes more.
std::uint64_t fitting_bytes_of(const Method& method, const LayerSpec& spec,
                               const CachePlan::Layer& layer, std::uint64_t rows);

// Of rows that wait for those of the last of the layers that they are fitted with.
std::uint64_t gathered_bytes(const Method& method, const LayerSpec& spec,
                             const CachePlan::Layer& layer, std::uint64_t rows);

// Of a segment's record in a session's file, in whole pages.
std::uint64_t record_bytes_of(const Method& method, const LayerSpec& spec,
                              const CachePlan::Layer& layer, const Segment& segment);

}  // namespace thermocline
