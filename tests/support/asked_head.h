// A KV head of a model that read real texts, who asks of it, and what they should find: what the
// studies of indexes search (tests/bench/index_bench.cpp, graph_bench.cpp).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/workers.h"
#include "kernels/cpu/table.h"
#include "tests/support/query_trace.h"

namespace thermocline::test {

struct AskedHead {
  static constexpr std::size_t kBest = 100;

  const LayerQueries* layer = nullptr;
  std::uint32_t head = 0;            // KV head
  std::uint32_t prompt = 0;          // rows of a prompt
  std::uint32_t sample = 0;          // of every so many positions the queries may be shown
  std::vector<std::uint32_t> asked;  // rows, in the last sixteenths of prompts, of which none is
  std::vector<std::vector<std::uint32_t>> best;  // [asked][query head]: its kBest keys, ascending

  const float* query(std::size_t q) const { return layer->query(head, asked[q]); }
  // [queries][query heads][key_dim]: those of rows [from, to) that an index may be shown.
  std::vector<float> shown(std::uint32_t from, std::uint32_t to) const;
};

// Which heads, as the benches are told.
struct AskedHeadOptions {
  QueryTraceOptions trace;
  std::vector<std::uint32_t> heads;  // of each traced layer
  std::uint32_t sample = 16, queries = 10;

  static constexpr int kArguments = 7;
  static constexpr const char* kUsage = "MODEL LAYERS HEADS ROWS PROMPT SAMPLE QUERIES";
  static AskedHeadOptions of(std::span<const char* const> arguments,
                             std::span<const char* const> texts);
};

struct AskedHeads {
  std::vector<LayerQueries> layers;  // what AskedHead::layer points to
  std::vector<AskedHead> heads;
};
Result<AskedHeads> ask_heads(const AskedHeadOptions& options, const CpuTable& cpu,
                             const Workers& workers);

// Which k of `count` scores are largest, ascending.
std::vector<std::uint32_t> best_of(const float* score, std::size_t count, std::size_t k);

}  // namespace thermocline::test
