// One FAISS index over the keys of one KV head of a segment: where FAISS itself is called.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/base/error.h"
#include "retrieval/index/faiss_index.h"

namespace thermocline {

// Of what an index of so many rows consists of. No more than its blocks take, each alone.
std::uint64_t faiss_bytes(FaissKind kind, const FaissOptions& options, std::uint32_t rows,
                          std::uint32_t key_dim);

class FaissHead {
 public:
  // keys [rows][key_dim]. Values that are no numbers are taken as 0.
  static Result<std::unique_ptr<FaissHead>> build(FaissKind kind, const FaissOptions& options,
                                                  std::vector<float> keys, std::uint32_t rows,
                                                  std::uint32_t key_dim);
  ~FaissHead();
  FaissHead(const FaissHead&) = delete;
  FaissHead& operator=(const FaissHead&) = delete;

  // score[r] of the rows that are found, at most `wanted`; leaves the others. Returns the bytes
  // that were looked at, about. Any thread.
  std::uint64_t search(const float* query, std::uint32_t wanted, float* score) const;

 private:
  struct Impl;
  explicit FaissHead(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace thermocline
