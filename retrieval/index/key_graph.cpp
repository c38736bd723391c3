#include "retrieval/index/key_graph.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "retrieval/scratch.h"

namespace thermocline {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr std::size_t kLine = 64;

void prefetch(const void* first, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += kLine)
    __builtin_prefetch(static_cast<const std::byte*>(first) + at);
}

// Calls body of the links of a key, in the type that they have.
template <typename Body>
void with_links(const KeyGraph& graph, std::uint32_t key, const Body& body) {
  if (graph.shape().link_bytes() == 2)
    body(graph.links<std::uint16_t>(key));
  else
    body(graph.links<std::uint32_t>(key));
}

class Bits {
 public:
  explicit Bits(std::uint64_t* words) : words_(words) {}
  // Returns whether it was not set before.
  bool set(std::uint32_t i) {
    const std::uint64_t bit = std::uint64_t{1} << i % 64;
    const bool fresh = !(words_[i / 64] & bit);
    words_[i / 64] |= bit;
    return fresh;
  }

 private:
  std::uint64_t* words_;
};

// One walk. Keys of the second graph are numbered behind those of the first, and so on.
class Walker {
 public:
  Walker(const GraphQuery& query, const CpuTable& cpu, GraphWalk* walk)
      : query_(query), cpu_(cpu), walk_(*walk) {
    std::uint32_t keys = 0, fresh = 0;
    walk_.first_key.clear();
    for (const KeyGraph& graph : query.graphs) {
      walk_.first_key.push_back(keys);
      keys += graph.shape().keys;
      fresh = std::max({fresh, graph.shape().degree, graph.shape().entries()});
    }
    const std::size_t words = (std::size_t{keys} + 63) / 64;
    walk_.marks.assign(2 * words, 0);
    touched_ = Bits(walk_.marks.data());
    followed_ = Bits(walk_.marks.data() + words);
    TL_CHECK(query.beam >= 1 && keys >= 1);
    most_ = std::min(query.beam, keys);
    grow(&walk_.beam_score, std::size_t{most_} * heads());
    grow(&walk_.beam_key, std::size_t{most_} * heads());
    grow(&walk_.fresh, fresh);
    walk_.beams.clear();
    for (std::size_t h = 0; h < heads(); ++h)
      walk_.beams.emplace_back(walk_.beam_score.data() + h * most_,
                               walk_.beam_key.data() + h * most_, most_);
    walk_.touched.clear();
    walk_.touched.reserve(keys);  // no later step of these graphs allocates
    walk_.score.clear();
    walk_.score.reserve(std::size_t{keys} * heads());
    walk_.link_bytes = 0;
  }

  void walk() {
    for (std::size_t g = 0; g < query_.graphs.size(); ++g) {
      const std::span<const std::uint32_t> entries = query_.graphs[g].entries();
      look_at(g, entries.data(), entries.size());
    }
    for (bool any = true; any;) {
      any = false;
      for (GraphBeam& beam : walk_.beams) {
        std::uint32_t key = 0;
        // Another head may have followed it.
        do {
          if (!beam.next(&key)) break;
          any = true;
        } while (!follow(key));
      }
    }
  }

 private:
  std::size_t heads() const { return static_cast<std::size_t>(query_.heads); }

  // Whether nobody had done so.
  bool follow(std::uint32_t key) {
    if (!followed_.set(key)) return false;
    const std::size_t g = static_cast<std::size_t>(
        std::upper_bound(walk_.first_key.begin(), walk_.first_key.end(), key) -
        walk_.first_key.begin() - 1);
    with_links(query_.graphs[g], key - walk_.first_key[g],
               [&](const auto* links) { look_at(g, links, query_.graphs[g].shape().degree); });
    walk_.link_bytes += query_.graphs[g].shape().degree * query_.graphs[g].shape().link_bytes();
    return true;
  }

  // Scores the keys among these that were not looked at before, and offers them to all beams.
  template <typename Link>
  void look_at(std::size_t g, const Link* links, std::size_t count) {
    const KeyGraph& graph = query_.graphs[g];
    const std::size_t dim = graph.shape().key_dim, key_bytes = dim * sizeof(f16);
    std::size_t fresh = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t key = links[i];
      if (!touched_.set(walk_.first_key[g] + key)) continue;
      prefetch(graph.key(key), key_bytes);
      walk_.fresh[fresh++] = key;
    }
    std::size_t at = walk_.touched.size() * heads();
    grow(&walk_.score, at + fresh * heads());
    for (std::size_t i = 0; i < fresh; ++i, at += heads()) {
      const std::uint32_t key = walk_.fresh[i];
      float* score = walk_.score.data() + at;
      cpu_.sketch.dot_rows(RowFormat::f16, reinterpret_cast<const std::byte*>(graph.key(key)),
                           key_bytes, 1, dim, query_.query, query_.heads, score, 1);
      walk_.touched.push_back(walk_.first_key[g] + key);
      bool kept = false;
      for (std::size_t h = 0; h < heads(); ++h) {
        if (!std::isfinite(score[h])) score[h] = kNone;
        kept = walk_.beams[h].offer(score[h], walk_.touched.back()) || kept;
      }
      if (kept)
        with_links(graph, key, [&](const auto* of) {
          prefetch(of, graph.shape().degree * graph.shape().link_bytes());
        });
    }
  }

  const GraphQuery& query_;
  const CpuTable& cpu_;
  GraphWalk& walk_;
  Bits touched_{nullptr}, followed_{nullptr};
  std::uint32_t most_ = 0;
};

}  // namespace

const char* KeyGraph::flaw() const {
  for (const std::uint32_t entry : entries())
    if (entry >= shape_.keys) return "has an entry that is no key";
  const char* found = nullptr;
  for (std::uint32_t k = 0; k < shape_.keys && !found; ++k)
    with_links(*this, k, [&](const auto* links) {
      for (std::uint32_t l = 0; l < shape_.degree; ++l)
        if (links[l] >= shape_.keys) found = "has a link that leads to no key";
    });
  return found;
}

void walk_graphs(const GraphQuery& query, const CpuTable& cpu, GraphWalk* walk) {
  Walker(query, cpu, walk).walk();
}

}  // namespace thermocline
