#include "retrieval/index/faiss_index.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "retrieval/index/faiss_build.h"
#include "retrieval/over_segments.h"

namespace thermocline {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

class FaissSegment final : public SegmentIndex {
 public:
  FaissSegment(FaissKind kind, std::uint32_t rows, std::uint64_t bytes)
      : kind_(kind), rows_(rows), bytes_(bytes) {}
  std::uint64_t bytes() const override { return bytes_; }
  FaissKind kind() const { return kind_; }
  std::uint32_t rows() const { return rows_; }
  std::vector<std::unique_ptr<FaissHead>> heads;

 private:
  FaissKind kind_;
  std::uint32_t rows_;
  std::uint64_t bytes_;
};

const FaissSegment& segment_of(const SegmentIndex& segment) {
  return static_cast<const FaissSegment&>(segment);
}

}  // namespace

template <FaissKind kind>
std::span<const Parameter<FaissOptions>> FaissIndex<kind>::parameters() {
  static constexpr Parameter<FaissOptions> kLists[] = {
      {"list", &FaissOptions::list, 4, kSegmentRows},
      {"probes", &FaissOptions::probes, 1, kSegmentRows}};
  static constexpr Parameter<FaissOptions> kGraph[] = {
      {"links", &FaissOptions::links, 2, 256},
      {"build_beam", &FaissOptions::build_beam, 1, kSegmentRows},
      {"search_beam", &FaissOptions::beam, 1, kSegmentRows}};
  if constexpr (kind == FaissKind::hnsw)
    return kGraph;
  else
    return kLists;
}

template <FaissKind kind>
std::string_view FaissIndex<kind>::name() const {
  return kind == FaissKind::ivf     ? "faiss_ivf"
         : kind == FaissKind::ivfpq ? "faiss_ivfpq"
                                    : "faiss_hnsw";
}

template <FaissKind kind>
std::uint64_t FaissIndex<kind>::index_bytes(HeadShape shape, std::uint64_t rows) const {
  return over_segments(rows, [&](std::uint32_t n) -> std::uint64_t {
    return n == 0 ? 0 : faiss_bytes(kind, options_, n, shape.key_dim);
  });
}

template <FaissKind kind>
Result<Formation> FaissIndex<kind>::form(const Sealing& sealing, const Workers& workers) const {
  const RawRows& rows = sealing.rows;
  const std::size_t dim = sealing.shape.key_dim;
  TL_CHECK(rows.rows >= 1 && rows.rows <= kSegmentRows);
  auto segment = std::make_shared<FaissSegment>(kind, rows.rows,
                                                rows.heads * index_bytes(sealing.shape, rows.rows));
  segment->heads.resize(rows.heads);
  std::vector<Status> made(rows.heads);
  workers.parallel(rows.heads, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t h = first; h < last; ++h) {
      std::vector<float> keys(rows.rows * dim);
      for (std::uint32_t r = 0; r < rows.rows; ++r)
        cpu_.dense.from_half(rows.key(static_cast<std::uint32_t>(h), r), dim,
                             keys.data() + r * dim);
      auto built = FaissHead::build(kind, options_, std::move(keys), rows.rows,
                                    static_cast<std::uint32_t>(dim));
      if (built)
        segment->heads[h] = std::move(*built);
      else
        made[h] = tl::unexpected(built.error());
    }
  });
  for (const Status& status : made) TL_TRY(status);
  Formation formation;
  formation.index = std::move(segment);
  return formation;
}

template <FaissKind kind>
void FaissIndex<kind>::save(const Formation&, RecordWriter*) const {}

template <FaissKind kind>
Result<Formation> FaissIndex<kind>::load(HeadShape, std::uint32_t, std::uint32_t,
                                         RecordReader*) const {
  return fail(ErrorCode::unsupported, "select.by = ", name(), " is not kept in files");
}

template <FaissKind kind>
bool FaissIndex<kind>::formed(const SegmentIndex& segment) const {
  const auto* of = dynamic_cast<const FaissSegment*>(&segment);
  return of && of->kind() == kind;
}

template <FaissKind kind>
std::uint32_t FaissIndex<kind>::units(const SegmentIndex& segment, std::uint32_t) const {
  return segment_of(segment).rows();
}

template <FaissKind kind>
std::uint32_t FaissIndex<kind>::first_row(const SegmentIndex&, std::uint32_t,
                                          std::uint32_t unit) const {
  return unit;
}

template <FaissKind kind>
std::uint64_t FaissIndex<kind>::score(const KeyQuery& query, KeyScratch*, float* score,
                                      std::size_t stride) const {
  std::uint64_t bytes = 0;
  for (const SegmentIndex* segment : query.segments) {
    const FaissSegment& of = segment_of(*segment);
    for (std::uint32_t h = 0; h < query.shape.heads; ++h) {
      float* to = score + h * stride;
      std::fill_n(to, of.rows(), kNone);
      bytes += of.heads[query.head]->search(query.query + std::size_t{h} * query.shape.key_dim,
                                            std::min(query.wanted_rows, of.rows()), to);
    }
    score += of.rows();
  }
  return bytes;
}

template class FaissIndex<FaissKind::ivf>;
template class FaissIndex<FaissKind::ivfpq>;
template class FaissIndex<FaissKind::hnsw>;

}  // namespace thermocline
