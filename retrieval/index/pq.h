// Product quantisation of keys (Jegou et al., PAMI 2011), as PQCache finds rows with it (Zhang et
// al., arXiv 2407.12820, section 3.2): the channels are cut into parts, and each part of a key is
// replaced by the nearest of 2^bits centroids that k-means found for this segment and head. A step
// takes the products of a query's parts with all centroids once, and a row's score is the sum of
// those that its codes name. A unit is a row.
#pragma once

#include <span>

#include "kernels/cpu/table.h"
#include "retrieval/index/block_index.h"
#include "tiers/parameter.h"

namespace thermocline {

struct PqOptions {
  std::uint32_t parts = 8;       // that the channels of a key are cut into
  std::uint32_t bits = 8;        // of the code of a part: it takes a byte
  std::uint32_t iterations = 6;  // of k-means
};

class PqCode final : public BlockCode {
 public:
  using Options = PqOptions;
  static std::span<const Parameter<PqOptions>> parameters();
  PqCode(const PqOptions& options, const CpuTable& cpu) : options_(options), cpu_(cpu) {}

  std::string_view name() const override { return "pq"; }
  std::uint32_t block() const override { return 1; }
  std::uint64_t bytes(HeadShape shape, std::uint32_t rows) const override;
  void keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const override;
  const char* flaw(HeadShape shape, std::uint32_t rows, const std::byte* kept) const override;
  std::uint64_t score(const BlockQuery& query, KeyScratch* scratch, float* score,
                      std::size_t stride) const override;

 private:
  // A segment of few rows has few centroids: they must not take more than the keys do.
  std::uint32_t centroids(std::uint32_t rows) const;
  std::uint32_t parts(HeadShape shape) const { return std::min(options_.parts, shape.key_dim); }
  // Where part p of `dim` channels begins.
  static std::uint32_t first_channel(std::uint32_t p, std::uint32_t parts, std::uint32_t dim) {
    return p * dim / parts;
  }

  PqOptions options_;
  const CpuTable& cpu_;
};

}  // namespace thermocline
