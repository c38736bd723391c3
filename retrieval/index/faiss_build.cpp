#include "retrieval/index/faiss_build.h"

#include <algorithm>

#ifdef THERMOCLINE_FAISS
#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <omp.h>

#include <cmath>

#include "kernels/eigen.h"
#endif

namespace thermocline {
namespace {

// Of fewer rows than this an IVFPQ or IVF would be larger than the keys: they are kept as they are.
constexpr std::uint32_t kPlainRows = 1024;
constexpr std::uint32_t kParts = 8, kBits = 8;

std::uint32_t lists_of(const FaissOptions& options, std::uint32_t rows) {
  return std::max(1u, rows / options.list);
}

}  // namespace

std::uint64_t faiss_bytes(FaissKind kind, const FaissOptions& options, std::uint32_t rows,
                          std::uint32_t key_dim) {
  const std::uint64_t key = std::uint64_t{key_dim} * sizeof(float), id = sizeof(std::int64_t);
  if (kind == FaissKind::hnsw) {
    // The lowest level's links, and an eighth of that for all others, which is twice what is
    // expected.
    return rows * (key + 2 * options.links * sizeof(std::int32_t) * 9 / 8 + 12);
  }
  const std::uint64_t lists = lists_of(options, rows) * key;
  // Of plain rows more than they take: many of them may be in one inverted file.
  if (kind == FaissKind::ivf || rows < kPlainRows)
    return rows * (key + id) +
           std::max<std::uint64_t>(lists, (rows + options.list - 1) / options.list * key);
  return rows * (kParts + id) + lists + (std::uint64_t{1} << kBits) * key;
}

#ifndef THERMOCLINE_FAISS

struct FaissHead::Impl {};

Status check_faiss() {
  return fail(ErrorCode::unsupported,
              "not built with FAISS: install libfaiss-dev and configure again, "
              "or select by another index");
}
Result<std::unique_ptr<FaissHead>> FaissHead::build(FaissKind, const FaissOptions&,
                                                    std::vector<float>, std::uint32_t,
                                                    std::uint32_t) {
  return tl::unexpected(check_faiss().error());
}
std::uint64_t FaissHead::search(const float*, std::uint32_t, float*) const { return 0; }

#else

struct FaissHead::Impl {
  std::unique_ptr<faiss::Index> coarse;  // an inverted file's centroids
  std::unique_ptr<faiss::Index> index;
  std::uint64_t looked_at = 0;  // bytes a search, about
};

namespace {

// Two pools of threads would wait for each other: FAISS and OpenBLAS compute where they are called.
void on_this_thread() {
  hold_blas_to_one_thread();
  omp_set_num_threads(1);
}

// FAISS speaks up about training sets that are small; a segment is what it is.
void be_quiet(faiss::ClusteringParameters* parameters) {
  parameters->min_points_per_centroid = 1;
  parameters->max_points_per_centroid = static_cast<int>(kSegmentRows);
}

}  // namespace

Status check_faiss() { return {}; }

Result<std::unique_ptr<FaissHead>> FaissHead::build(FaissKind kind, const FaissOptions& options,
                                                    std::vector<float> keys, std::uint32_t rows,
                                                    std::uint32_t key_dim) {
  on_this_thread();
  for (float& x : keys)
    if (!std::isfinite(x)) x = 0.0f;
  auto made = std::make_unique<Impl>();
  const int dim = static_cast<int>(key_dim);
  const std::uint64_t key = std::uint64_t{key_dim} * sizeof(float);
  try {
    if (kind == FaissKind::hnsw) {
      auto index = std::make_unique<faiss::IndexHNSWFlat>(dim, static_cast<int>(options.links),
                                                          faiss::METRIC_INNER_PRODUCT);
      index->hnsw.efConstruction = static_cast<int>(options.build_beam);
      index->hnsw.efSearch = static_cast<int>(options.beam);
      made->looked_at = options.beam * (key + 2 * options.links * sizeof(std::int32_t));
      made->index = std::move(index);
    } else if (rows < kPlainRows) {
      made->index = std::make_unique<faiss::IndexFlatIP>(dim);
      made->looked_at = rows * key;
    } else {
      const std::uint32_t lists = lists_of(options, rows);
      const std::uint32_t probes = std::min(options.probes, lists);
      made->coarse = std::make_unique<faiss::IndexFlatIP>(dim);
      std::unique_ptr<faiss::IndexIVF> index;
      if (kind == FaissKind::ivf) {
        index = std::make_unique<faiss::IndexIVFFlat>(made->coarse.get(), dim, lists,
                                                      faiss::METRIC_INNER_PRODUCT);
      } else {
        auto coded = std::make_unique<faiss::IndexIVFPQ>(made->coarse.get(), dim, lists, kParts,
                                                         kBits, faiss::METRIC_INNER_PRODUCT);
        be_quiet(&coded->pq.cp);
        index = std::move(coded);
      }
      be_quiet(&index->cp);
      index->nprobe = probes;
      made->looked_at = lists * key + std::uint64_t{probes} * rows / lists *
                                          (index->code_size + sizeof(std::int64_t));
      index->train(rows, keys.data());
      made->index = std::move(index);
    }
    made->index->add(rows, keys.data());
  } catch (const std::exception& error) {
    return fail(ErrorCode::unsupported, "FAISS: ", error.what());
  }
  return std::unique_ptr<FaissHead>(new FaissHead(std::move(made)));
}

std::uint64_t FaissHead::search(const float* query, std::uint32_t wanted, float* score) const {
  on_this_thread();
  std::vector<float> found(wanted);
  std::vector<faiss::Index::idx_t> row(wanted);
  impl_->index->search(1, query, wanted, found.data(), row.data());
  for (std::uint32_t i = 0; i < wanted; ++i)
    if (row[i] >= 0) score[row[i]] = found[i];
  return impl_->looked_at;
}

#endif

FaissHead::FaissHead(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
FaissHead::~FaissHead() = default;

}  // namespace thermocline
