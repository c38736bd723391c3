// What a retainer's vote takes, for who plans it and who has it counted.
#pragma once

#include <algorithm>
#include <cstdint>

#include "runtime/layer_spec.h"
#include "runtime/method.h"
#include "runtime/query_sample.h"

namespace thermocline {

// The queries of a prefill of so many positions, from `first` on, that vote.
inline QuerySample voting_queries(const Method& method, std::uint32_t first,
                                  std::size_t positions) {
  const auto end = first + static_cast<std::uint32_t>(positions);
  if (method.retain->voters() == Voters::all) return QuerySample::of(first, end);
  QuerySample sample;
  sample.count = std::min(method.retain->last(), end - first);
  sample.first = end - sample.count;
  sample.stride = 1;
  return sample;
}

// Memory of a vote on no more than `rows` rows, sinks included, by a prefill of so many positions:
// the queries, the votes, and scores of each query head. Steps vote in what a timeline has for it.
inline std::uint64_t voting_bytes(const Method& method, const LayerSpec& spec,
                                  std::uint32_t positions, std::uint32_t rows) {
  const std::uint32_t queries = method.retain->voters() == Voters::all
                                    ? QuerySample::most(positions) + 1
                                    : std::min(method.retain->last(), positions);
  return sizeof(float) * (std::uint64_t{queries} * spec.q_heads * spec.key_dim +
                          std::uint64_t{rows} * (spec.kv_heads + spec.q_heads));
}

}  // namespace thermocline
