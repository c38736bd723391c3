#include "retrieval/index/graph.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "retrieval/index/head_records.h"
#include "retrieval/over_segments.h"

namespace thermocline {
namespace {

struct GraphScratch final : KeyScratch {
  GraphWalk walk;
};

}  // namespace

std::span<const Parameter<GraphIndexOptions>> GraphIndex::parameters() {
  static constexpr Parameter<GraphIndexOptions> kParameters[] = {
      {"degree", &GraphIndexOptions::degree, 2, 256},
      {"own", &GraphIndexOptions::own, 0, 255},
      {"neighbours", &GraphIndexOptions::neighbours, 1, 1000},
      {"beam", &GraphIndexOptions::beam, 1, 1 << 20}};
  return kParameters;
}

Status GraphIndex::check(const Options& options) {
  if (options.own + 2 <= options.degree) return {};  // one is the way to all keys
  return fail(ErrorCode::invalid_argument, "graph: own = ", options.own, " leaves none of the ",
              options.degree, " links of a key (degree) to what queries found: give ",
              options.degree - 2, " or less");
}

std::uint64_t GraphIndex::head_bytes(HeadShape shape, std::uint32_t rows) const {
  return rows == 0 ? 0 : HeadRecords::of_head(graph_shape(shape, rows).bytes());
}

std::uint64_t GraphIndex::index_bytes(HeadShape shape, std::uint64_t rows) const {
  return over_segments(rows, [&](std::uint32_t n) { return head_bytes(shape, n); });
}

Result<Formation> GraphIndex::form(const Sealing& sealing, const Workers& workers) const {
  const RawRows& rows = sealing.rows;
  const HeadShape shape = sealing.shape;
  TL_CHECK(rows.rows >= 1 && rows.rows <= kSegmentRows);
  TL_CHECK(rows.layout.key_bytes == shape.key_dim * sizeof(f16));
  TL_TRY(check_channels(name(), shape));
  TL_TRY_ASSIGN(const auto records,
                HeadRecords::create(name(), rows.heads, rows.rows, head_bytes(shape, rows.rows)));
  const GraphOptions options{options_.degree, options_.own, options_.neighbours};
  const std::size_t queries = std::size_t{sealing.queries} * shape.heads;
  for (std::uint32_t h = 0; h < rows.heads; ++h) {
    const KeyGraph graph(graph_shape(shape, rows.rows), records->head(h));
    for (std::uint32_t r = 0; r < rows.rows; ++r)
      std::copy_n(rows.key(h, r), shape.key_dim, graph.key(r));
    const float* of_head =
        queries > 0 ? sealing.query + std::size_t{h} * queries * shape.key_dim : nullptr;
    link_keys(of_head, queries, options, cpu_, workers, graph);
  }
  Formation formation;
  formation.index = records;
  return formation;
}

void GraphIndex::save(const Formation& formation, RecordWriter* out) const {
  static_cast<const HeadRecords&>(*formation.index).save(out);
}

Result<Formation> GraphIndex::load(HeadShape shape, std::uint32_t heads, std::uint32_t rows,
                                   RecordReader* in) const {
  TL_TRY_ASSIGN(const auto records,
                HeadRecords::load(name(), heads, rows, head_bytes(shape, rows), in));
  for (std::uint32_t h = 0; h < heads; ++h)
    if (const char* flaw = KeyGraph(graph_shape(shape, rows), records->head(h)).flaw())
      return in->corrupt("index", flaw, ", in head ", h);
  Formation formation;
  formation.index = records;
  return formation;
}

std::unique_ptr<KeyScratch> GraphIndex::scratch() const { return std::make_unique<GraphScratch>(); }

bool GraphIndex::formed(const SegmentIndex& segment) const {
  return HeadRecords::of(name(), segment) != nullptr;
}

std::uint32_t GraphIndex::units(const SegmentIndex& segment, std::uint32_t) const {
  return static_cast<const HeadRecords&>(segment).rows();
}

std::uint32_t GraphIndex::first_row(const SegmentIndex&, std::uint32_t, std::uint32_t unit) const {
  return unit;
}

std::uint64_t GraphIndex::score(const KeyQuery& query, KeyScratch* scratch, float* score,
                                std::size_t stride) const {
  const HeadShape shape = query.shape;
  GraphWalk& walk = static_cast<GraphScratch*>(scratch)->walk;
  walk.graphs.clear();
  std::uint64_t units = 0;
  for (const SegmentIndex* segment : query.segments) {
    const auto& records = static_cast<const HeadRecords&>(*segment);
    walk.graphs.emplace_back(graph_shape(shape, records.rows()), records.head(query.head));
    units += records.rows();
  }
  const std::uint32_t of_head = (query.wanted_rows + shape.heads - 1) / shape.heads;
  walk_graphs(
      {walk.graphs, query.query, static_cast<int>(shape.heads), std::max(options_.beam, of_head)},
      cpu_, &walk);
  for (std::size_t h = 0; h < shape.heads; ++h) {
    float* of = score + h * stride;
    std::fill_n(of, units, -std::numeric_limits<float>::infinity());
    for (std::size_t i = 0; i < walk.touched.size(); ++i)
      of[walk.touched[i]] = walk.score[i * shape.heads + h];
  }
  return walk.touched.size() * shape.key_dim * sizeof(f16) + walk.link_bytes;
}

}  // namespace thermocline
