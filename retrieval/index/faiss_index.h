// General-purpose indexes of FAISS, the baselines that an index made for attention is measured
// against (Douze et al., arXiv 2401.08281): an inverted file, the same with product-quantised
// residuals, and HNSW (Malkov and Yashunin, arXiv 1603.09320), all for inner products. One index a
// segment and KV head, each query head searched by itself. Units are rows; those that FAISS does
// not return are passed over, and an IVFPQ's scores are those of its codes.
//
// A build without FAISS has these names and refuses them. Searches allocate, which FAISS leaves us
// no choice in; each is on the calling thread. What FAISS reads from a file it trusts, and our
// files are untrusted, so nothing is saved: with a session the method is refused.
#pragma once

#include <span>

#include "kernels/cpu/table.h"
#include "retrieval/index/key_index.h"
#include "tiers/parameter.h"

namespace thermocline {

enum class FaissKind : std::uint8_t { ivf, ivfpq, hnsw };

// Each kind has some of these: FaissIndex<kind>::parameters().
struct FaissOptions {
  std::uint32_t list = 64;        // rows an inverted list, about
  std::uint32_t probes = 8;       // lists that are searched in each segment
  std::uint32_t links = 32;       // of a key in HNSW; twice as many on its lowest level
  std::uint32_t build_beam = 40;  // efConstruction
  std::uint32_t beam = 128;       // efSearch; at least as many as rows are wanted
};

// unsupported: this build has no FAISS, and what it would need.
Status check_faiss();

template <FaissKind kind>
class FaissIndex final : public KeyIndex {
 public:
  using Options = FaissOptions;
  static std::span<const Parameter<Options>> parameters();
  static Status available() { return check_faiss(); }
  FaissIndex(const Options& options, const CpuTable& cpu) : options_(options), cpu_(cpu) {}

  std::string_view name() const override;
  SelectorFacts facts() const override {
    return {.keys_in_memory = kind != FaissKind::ivfpq, .in_files = false};
  }
  // unsupported: FAISS does not take these rows, in its words.
  Result<Formation> form(const Sealing& sealing, const Workers& workers) const override;
  void save(const Formation& formation, RecordWriter* out) const override;
  Result<Formation> load(HeadShape shape, std::uint32_t heads, std::uint32_t rows,
                         RecordReader* in) const override;
  // Of what the index consists of; FAISS may allocate ahead.
  std::uint64_t index_bytes(HeadShape shape, std::uint64_t rows) const override;
  bool scores_all() const override { return false; }
  bool formed(const SegmentIndex& segment) const override;
  std::uint32_t units(const SegmentIndex& segment, std::uint32_t head) const override;
  std::uint32_t first_row(const SegmentIndex& segment, std::uint32_t head,
                          std::uint32_t unit) const override;
  // An inverted file's centroids and searched lists, were all of one length; of HNSW the beam's
  // keys and links: how many more a walk looked at FAISS counts for the whole process only.
  std::uint64_t score(const KeyQuery& query, KeyScratch* scratch, float* score,
                      std::size_t stride) const override;

 private:
  Options options_;
  const CpuTable& cpu_;
};

using FaissIvf = FaissIndex<FaissKind::ivf>;
using FaissIvfPq = FaissIndex<FaissKind::ivfpq>;
using FaissHnsw = FaissIndex<FaissKind::hnsw>;

}  // namespace thermocline
