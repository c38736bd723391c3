// Keys and queries as attention sees them, rotated and scaled, and values, of some layers of a
// model that reads real texts: what studies of indexes search, since made-up keys flatter or defame
// every one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/attend.h"
#include "kernels/base/error.h"
#include "kernels/base/half.h"
#include "tiers/block.h"

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
  std::vector<f16> records;    // [kv_heads][rows]: key, then value
  std::vector<float> queries;  // [kv_heads][rows][heads][key_dim]

  // One KV head's, as a selector is handed them.
  RawRows rows_of(std::uint32_t head) const {
    const auto sides = [](std::uint32_t dim) { return dim * std::uint32_t{sizeof(f16)}; };
    return {{RowFormat::f16, RowFormat::f16, sides(shape.key_dim), sides(shape.value_dim)},
            1,
            0,
            rows,
            reinterpret_cast<const std::byte*>(&records[std::size_t{head} * rows * width()]),
            0};
  }
  std::size_t width() const { return shape.key_dim + shape.value_dim; }
  const float* query(std::uint32_t head, std::uint32_t row) const {  // [heads][key_dim]
    return &queries[(std::size_t{head} * rows + row) * shape.heads * shape.key_dim];
  }
};

Result<std::vector<LayerQueries>> trace_queries(const QueryTraceOptions& options);

}  // namespace thermocline::test
