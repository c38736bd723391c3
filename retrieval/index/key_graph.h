// A graph over the keys of one KV head that queries walk from key to key: the attention-aware graph
// of RetrievalAttention (Liu et al., arXiv 2409.10516, section 3.2), after RoarGraph (Chen et al.,
// arXiv 2408.08933, section 4). Queries lie elsewhere than keys, so links between keys that are
// near each other lead a query astray; what a prefill's own queries found together is linked
// instead (key_graph_build.h).
//
// A view of a record of bytes: the keys, the links and the entries, where every walk begins. Keys
// are a copy, since a walk reads single keys at random and the cache's rows may be coded,
// interleaved with values, or on the disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attend.h"
#include "kernels/base/half.h"
#include "kernels/cpu/table.h"
#include "retrieval/index/graph_beam.h"

namespace thermocline {

struct GraphShape {
  std::uint32_t keys = 0;  // at least 1
  std::uint32_t key_dim = 0;
  std::uint32_t degree = 0;  // links of each key

  std::uint32_t entries() const { return (keys + kKeysAnEntry - 1) / kKeysAnEntry; }
  // A link is the number of a key, in 16 bits where that is enough.
  std::uint32_t link_bytes() const { return keys <= 1u << 16 ? 2 : 4; }
  std::uint64_t links_at() const { return std::uint64_t{keys} * key_dim * sizeof(f16); }
  std::uint64_t entries_at() const {
    return (links_at() + std::uint64_t{keys} * degree * link_bytes() + 3) / 4 * 4;
  }
  std::uint64_t bytes() const { return entries_at() + entries() * sizeof(std::uint32_t); }

  static constexpr std::uint32_t kKeysAnEntry = 128;
};

class KeyGraph {
 public:
  KeyGraph() = default;
  // `record` is GraphShape::bytes() long and outlives the view.
  KeyGraph(const GraphShape& shape, std::byte* record) : shape_(shape), record_(record) {}

  const GraphShape& shape() const { return shape_; }
  f16* key(std::uint32_t k) const {
    return reinterpret_cast<f16*>(record_) + std::size_t{k} * shape_.key_dim;
  }
  // [degree]: of a key that has fewer, the rest are itself.
  template <typename Link>
  Link* links(std::uint32_t k) const {
    return reinterpret_cast<Link*>(record_ + shape_.links_at()) + std::size_t{k} * shape_.degree;
  }
  std::span<std::uint32_t> entries() const {
    return {reinterpret_cast<std::uint32_t*>(record_ + shape_.entries_at()), shape_.entries()};
  }
  // Why a record cannot be walked; null: every link and entry is a key.
  const char* flaw() const;

 private:
  GraphShape shape_;
  std::byte* record_ = nullptr;
};

// The query heads of one KV head, and the graphs that are walked as one: each is a component, its
// keys numbered behind those of the graphs before it.
struct GraphQuery {
  std::span<const KeyGraph> graphs;  // of one key_dim
  const float* query = nullptr;      // [heads][key_dim]
  int heads = 0;
  // The best keys that a walk keeps for each query head: it ends when it has looked at the links of
  // all of them. At least as many as are wanted.
  std::uint32_t beam = 0;
};

// What a walk works with, and where it leaves what it found: it grows and stays.
struct GraphWalk {
  // In the order in which they were looked at.
  std::vector<std::uint32_t> touched;
  std::vector<float> score;      // [touched][heads], exact; -inf: not a finite number
  std::uint64_t link_bytes = 0;  // that were followed

  std::vector<KeyGraph> graphs;          // room for a caller to put a query's
  std::vector<std::uint32_t> first_key;  // of each graph
  std::vector<std::uint64_t> marks;
  std::vector<float> beam_score;
  std::vector<std::uint32_t> beam_key, fresh;
  std::vector<GraphBeam> beams;
};

// Greedy best-first search, all query heads in one walk: they take turns in following the links of
// the best key that nobody has followed, and a key that one head reaches is scored for all, since
// it is read anyhow. Equal scores go to the lower key. A function of its arguments alone.
void walk_graphs(const GraphQuery& query, const CpuTable& cpu, GraphWalk* walk);

}  // namespace thermocline
