// To which of many candidates a key of a graph is linked: from the nearest on, one is passed over
// that is nearer to one already taken than to the key, since the walk comes to it that way. What
// was passed over comes back, nearest first, where too few are left (RoarGraph, arXiv 2408.08933,
// algorithm 2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/base/half.h"
#include "kernels/cpu/table.h"

namespace thermocline {

// The keys of a head, in memory that someone else owns.
struct KeyRows {
  const f16* key = nullptr;  // [count][dim]
  std::size_t count = 0, dim = 0;
  const f16* row(std::size_t k) const { return key + k * dim; }
};

class LinkPruner {
 public:
  struct Scratch {  // of one thread
    std::vector<f16> rows;
    std::vector<float> key, score, half_square;
    std::vector<std::pair<float, std::uint32_t>> near;
    std::vector<std::uint8_t> hidden;
  };

  LinkPruner(const KeyRows& keys, const CpuTable& cpu);

  // At most `wanted` of the candidates, which are other keys than k, to `taken`; returns how many.
  // Distances that are no numbers are the longest, equal ones go to the lower key.
  std::size_t prune(std::uint32_t k, std::span<const std::uint32_t> candidates, std::size_t wanted,
                    Scratch* scratch, std::uint32_t* taken) const;

  float half_square(std::size_t k) const { return half_square_[k]; }  // of a key's length

 private:
  void gather(Scratch* scratch) const;
  void score_from(std::uint32_t k, Scratch* scratch) const;

  KeyRows keys_;
  const CpuTable& cpu_;
  std::vector<float> half_square_;
};

}  // namespace thermocline
