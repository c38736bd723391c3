// Keys and queries as attention sees them, rotated and scaled, of some layers of a model that reads
// real texts: what the study of indexes searches, since made-up keys flatter or defame every one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/attend.h"
#include "kernels/base/error.h"
#include "kernels/base/half.h"

namespace thermocline::test {

struct QueryTraceOptions {
  std::string model;               // path
  std::vector<std::string> texts;  // paths, read one after the other
  std::vector<std::uint32_t> layers = {0};
  // The texts together are cut into prompts of so many tokens, each read by itself from position 0;
  // what is left over is not read.
  std::uint32_t prompt = 8192;
  std::uint32_t prompts = 1;  // not_found: the texts are too short for as many
};

// Of one layer. Rows of a prompt follow each other, and prompts follow each other.
struct LayerQueries {
  std::uint32_t layer = 0, kv_heads = 0, rows = 0;
  HeadShape shape;             // heads: query heads a KV head
  std::vector<f16> keys;       // [kv_heads][rows][key_dim]
  std::vector<float> queries;  // [kv_heads][rows][heads][key_dim]

  const f16* key(std::uint32_t head, std::uint32_t row) const {
    return &keys[(std::size_t{head} * rows + row) * shape.key_dim];
  }
  const float* query(std::uint32_t head, std::uint32_t row) const {  // [heads][key_dim]
    return &queries[(std::size_t{head} * rows + row) * shape.heads * shape.key_dim];
  }
};

Result<std::vector<LayerQueries>> trace_queries(const QueryTraceOptions& options);

}  // namespace thermocline::test
