// Graphs of keys against the scores of all keys: what a walk finds, in which order, and that it is
// the same on any number of threads.
#include "retrieval/index/key_graph.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "retrieval/index/graph.h"
#include "retrieval/index/key_graph_build.h"
#include "tests/unit/retrieval/sealed_keys.h"

namespace thermocline {
namespace {

const CpuTable& table() { return **choose_cpu_table("auto"); }

// Keys around some directions, and queries that lie elsewhere: around an offset of their own.
struct Made {
  HeadShape shape;
  SyntheticRows rows;
  std::vector<float> query;  // [count][heads][key_dim]
  std::uint32_t count;

  Made(HeadShape of, std::uint32_t keys, std::uint32_t queries, unsigned seed)
      : shape(of), rows(of, 1, keys, std::max(1u, keys / 24), seed), count(queries) {
    std::mt19937 random(seed + 1);
    std::normal_distribution<float> normal;
    std::vector<float> offset(of.key_dim);
    for (float& x : offset) x = normal(random);
    query.resize(std::size_t{queries} * of.heads * of.key_dim);
    for (std::size_t i = 0; i < query.size(); ++i)
      query[i] = 0.3f * (offset[i % of.key_dim] + normal(random));
  }
  Sealing sealing(bool watched) const {
    Sealing made = rows.sealing();
    if (watched) {
      made.queries = count;
      made.query = query.data();
    }
    return made;
  }
  const float* asked(std::uint32_t q) const {
    return query.data() + std::size_t{q} * shape.heads * shape.key_dim;
  }
};

struct Graph {
  std::vector<std::byte> record;
  KeyGraph graph;
  Graph(const Made& made, const GraphOptions& options, bool watched, int threads) {
    const Sealing sealing = made.sealing(watched);
    const GraphShape shape{sealing.rows.rows, made.shape.key_dim, options.degree};
    record.resize(shape.bytes());
    graph = KeyGraph(shape, record.data());
    for (std::uint32_t r = 0; r < shape.keys; ++r)
      std::copy_n(sealing.rows.key(0, r), shape.key_dim, graph.key(r));
    link_keys(sealing.query, std::size_t{sealing.queries} * made.shape.heads, options, table(),
              Workers(threads), graph);
  }
};

std::vector<float> all_scores(const Made& made, const float* query) {
  const Sealing sealing = made.sealing(false);
  std::vector<float> score(std::size_t{made.shape.heads} * sealing.rows.rows);
  for (std::uint32_t h = 0; h < made.shape.heads; ++h)
    for (std::uint32_t r = 0; r < sealing.rows.rows; ++r) {
      double sum = 0;
      for (std::uint32_t d = 0; d < made.shape.key_dim; ++d)
        sum += double{query[h * made.shape.key_dim + d]} * to_float(sealing.rows.key(0, r)[d]);
      score[std::size_t{h} * sealing.rows.rows + r] = static_cast<float>(sum);
    }
  return score;
}

// How much of the best `k` of each query head a walk has looked at, and how many keys it touched.
struct Quality {
  double recall = 0, touched = 0;
};
Quality measure(const Made& asking, const Made& keys, const KeyGraph& graph, std::uint32_t beam,
                std::uint32_t k) {
  Quality quality;
  GraphWalk walk;
  const std::uint32_t n = graph.shape().keys;
  for (std::uint32_t q = 0; q < asking.count; ++q) {
    walk_graphs({{&graph, 1}, asking.asked(q), static_cast<int>(asking.shape.heads), beam}, table(),
                &walk);
    std::vector<std::uint8_t> seen(n);
    for (const std::uint32_t key : walk.touched) seen[key] = 1;
    const std::vector<float> score = all_scores(keys, asking.asked(q));
    for (std::uint32_t h = 0; h < asking.shape.heads; ++h) {
      const float* of = score.data() + std::size_t{h} * n;
      std::vector<std::uint32_t> order(n);
      for (std::uint32_t r = 0; r < n; ++r) order[r] = r;
      std::partial_sort(order.begin(), order.begin() + k, order.end(),
                        [&](auto a, auto b) { return of[a] > of[b]; });
      for (std::uint32_t i = 0; i < k; ++i)
        quality.recall += seen[order[i]] / static_cast<double>(k * asking.shape.heads);
    }
    quality.touched += static_cast<double>(walk.touched.size());
  }
  quality.recall /= asking.count;
  quality.touched /= asking.count;
  return quality;
}

// Of queries that were not shown to it.
TEST(KeyGraph, FindsTheBestKeysAndTouchesFew) {
  const HeadShape shape{2, 64, 16};
  constexpr std::uint32_t kShown = 256, kAsked = 20;
  Made keys(shape, 4096, kShown + kAsked, 1);
  Made asking = keys;
  asking.query.erase(asking.query.begin(),
                     asking.query.begin() + kShown * shape.heads * shape.key_dim);
  asking.count = kAsked;
  keys.count = kShown;
  const Graph watched(keys, {}, true, 2), alone(keys, {}, false, 2);
  const Quality with = measure(asking, keys, watched.graph, 150, 50);
  EXPECT_GT(with.recall, 0.95);
  EXPECT_LT(with.touched, 0.35 * 4096);
  // Queries lie elsewhere than keys: what they found together leads where distance does not.
  const Quality without = measure(asking, keys, alone.graph, 150, 50);
  EXPECT_GT(without.recall, 0.6);
  EXPECT_GT(with.recall, without.recall);
}

// Also of what few have asked: 2,000 keys have 16 entries, and the 16 that are in most lists are
// those of what all but one ask.
TEST(KeyGraph, HasAnEntryForEveryKindOfQuery) {
  const HeadShape shape{1, 64, 16};
  constexpr std::uint32_t kAsked = 100, kList = 24;
  Made keys(shape, 2000, kAsked, 3);
  for (std::uint32_t q = 1; q < kAsked; ++q)
    for (std::uint32_t d = 0; d < shape.key_dim; ++d)
      keys.query[std::size_t{q} * shape.key_dim + d] = -keys.query[d];
  const Graph of(keys, {.neighbours = kList}, true, 2);
  ASSERT_EQ(of.graph.entries().size(), 16u);
  for (const std::uint32_t q : {0u, 1u}) {
    const std::vector<float> score = all_scores(keys, keys.asked(q));
    const auto in_list = [&](std::uint32_t entry) {
      return std::count_if(score.begin(), score.end(), [&](float s) { return s > score[entry]; }) <
             kList;
    };
    EXPECT_GE(std::count_if(of.graph.entries().begin(), of.graph.entries().end(), in_list), 4) << q;
  }
}

TEST(KeyGraph, ReachesEveryKey) {
  const HeadShape shape{1, 64, 16};
  for (const std::uint32_t n : {1u, 2u, 3u, 63u, 64u, 65u, 700u, 8192u})
    for (const bool watched : {true, false}) {
      const Made keys(shape, n, 40, n);
      const Graph of(keys, {.degree = 8, .own = 3, .neighbours = 20}, watched, 2);
      EXPECT_EQ(of.graph.flaw(), nullptr);
      GraphWalk walk;
      walk_graphs({{&of.graph, 1}, keys.asked(0), 1, n}, table(), &walk);
      std::sort(walk.touched.begin(), walk.touched.end());
      ASSERT_EQ(walk.touched.size(), n);
      for (std::uint32_t r = 0; r < n; ++r) ASSERT_EQ(walk.touched[r], r);
    }
}

TEST(KeyGraph, ScoresWhatItTouchesExactlyAndOnce) {
  for (const std::uint32_t dim : {64u, 80u, 96u, 128u, 256u})
    for (const std::uint32_t heads : {1u, 3u, 4u, 9u}) {
      const Made keys({heads, dim, 16}, 600, 16, dim + heads);
      const Graph of(keys, {}, true, 2);
      GraphWalk walk;
      walk_graphs({{&of.graph, 1}, keys.asked(3), static_cast<int>(heads), 30}, table(), &walk);
      const std::vector<float> score = all_scores(keys, keys.asked(3));
      std::vector<std::uint8_t> seen(600);
      for (std::size_t i = 0; i < walk.touched.size(); ++i) {
        EXPECT_EQ(seen[walk.touched[i]]++, 0);
        for (std::uint32_t h = 0; h < heads; ++h)
          EXPECT_NEAR(walk.score[i * heads + h], score[h * 600 + walk.touched[i]], 2e-3);
      }
    }
}

TEST(KeyGraph, IsTheSameOnAnyNumberOfThreads) {
  const Made keys({3, 64, 16}, 3000, 100, 5);
  for (const bool watched : {true, false})
    EXPECT_EQ(Graph(keys, {}, watched, 1).record, Graph(keys, {}, watched, 2).record);
}

TEST(KeyGraph, WalksManyGraphsAsOne) {
  const HeadShape shape{2, 64, 16};
  const Made a(shape, 500, 40, 1), b(shape, 70, 40, 2);
  const Graph first(a, {}, true, 1), second(b, {}, false, 1);
  const KeyGraph both[] = {first.graph, second.graph};
  GraphWalk walk;
  walk_graphs({both, a.asked(0), 2, 570}, table(), &walk);
  EXPECT_EQ(walk.touched.size(), 570u);
  const std::vector<float> of_second = all_scores(b, a.asked(0));
  for (std::size_t i = 0; i < walk.touched.size(); ++i)
    if (walk.touched[i] >= 500) {
      EXPECT_NEAR(walk.score[2 * i + 1], of_second[70 + walk.touched[i] - 500], 2e-3);
    }
}

// Keys that are alike, or no numbers: nothing is lost, nothing loops, ties go to the lower key.
TEST(KeyGraph, TakesHostileKeys) {
  const HeadShape shape{2, 64, 16};
  const f16 bad[] = {to_f16(0.0f), to_f16(1.0f), to_f16(std::numeric_limits<float>::quiet_NaN()),
                     to_f16(std::numeric_limits<float>::infinity()), to_f16(65504.0f)};
  for (const f16 value : bad) {
    Made keys(shape, 900, 40, 9);
    for (std::uint32_t r = 0; r < 900; ++r)
      if (r % 3 != 1) std::fill_n(keys.rows.key(0, r), shape.key_dim, value);
    for (const bool watched : {true, false}) {
      const Graph of(keys, {}, watched, 2);
      EXPECT_EQ(of.graph.flaw(), nullptr);
      GraphWalk walk;
      walk_graphs({{&of.graph, 1}, keys.asked(0), 2, 900}, table(), &walk);
      for (const float score : walk.score)
        EXPECT_FALSE(std::isnan(score) || score == std::numeric_limits<float>::infinity());
    }
  }
  Made equal(shape, 900, 40, 9);
  for (std::uint32_t r = 0; r < 900; ++r)
    std::copy_n(equal.rows.key(0, 0), shape.key_dim, equal.rows.key(0, r));
  const Graph of(equal, {}, true, 2);
  GraphWalk walk;
  walk_graphs({{&of.graph, 1}, equal.asked(0), 2, 900}, table(), &walk);
  EXPECT_EQ(walk.touched.size(), 900u);
}

TEST(GraphBeam, KeepsTheBestInTotalOrder) {
  std::mt19937 random(3);
  for (const std::uint32_t most : {1u, 2u, 7u, 64u}) {
    std::vector<float> score(most);
    std::vector<std::uint32_t> key(most);
    GraphBeam beam(score.data(), key.data(), most);
    std::vector<std::pair<float, std::uint32_t>> all;
    for (std::uint32_t k = 0; k < 200; ++k) {
      const float s = static_cast<float>(random() % 20);
      all.emplace_back(-s, k);
      beam.offer(s, k);
    }
    beam.offer(-std::numeric_limits<float>::infinity(), 1000);
    beam.offer(std::numeric_limits<float>::quiet_NaN(), 1001);
    std::sort(all.begin(), all.end());
    for (std::uint32_t i = 0; i < most; ++i) {
      std::uint32_t next = 0;
      ASSERT_TRUE(beam.next(&next));
      EXPECT_EQ(next, all[i].second);
    }
    std::uint32_t none = 0;
    EXPECT_FALSE(beam.next(&none));
  }
}

TEST(GraphIndex, ScoresOrPassesOver) {
  const HeadShape shape{3, 64, 16};
  const Made keys(shape, 4000, 200, 4);
  const GraphIndex index({}, table());
  const auto formed = index.form(keys.sealing(true), Workers(2));
  ASSERT_TRUE(formed);
  const SegmentIndex* segment = formed->index.get();
  EXPECT_EQ(index.units(*segment, 0), 4000u);
  EXPECT_EQ(segment->bytes(), index.index_bytes(shape, 4000));
  std::vector<float> score(3 * 5000, 7.0f);
  const auto scratch = index.scratch();
  const std::uint64_t bytes =
      index.score({0, shape, keys.asked(0), {&segment, 1}, 100}, scratch.get(), score.data(), 5000);
  EXPECT_GT(bytes, 100u * 128);
  EXPECT_LT(bytes, 4000u * 128);
  const std::vector<float> exact = all_scores(keys, keys.asked(0));
  std::size_t looked = 0;
  for (std::size_t h = 0; h < 3; ++h)
    for (std::size_t u = 0; u < 4000; ++u) {
      if (std::isinf(score[h * 5000 + u])) continue;
      ++looked;
      EXPECT_NEAR(score[h * 5000 + u], exact[h * 4000 + u], 2e-3);
    }
  EXPECT_GE(looked, 300u);
  EXPECT_EQ(score[4000], 7.0f);
}

TEST(GraphIndex, LoadsWhatItSavedAndNothingThatLeadsAstray) {
  const HeadShape shape{3, 64, 16};
  const Made keys(shape, 777, 50, 4);
  const GraphIndex index({}, table());
  const auto formed = index.form(keys.sealing(true), Workers(2));
  RecordWriter out;
  index.save(*formed, &out);
  std::vector<std::byte> bytes(out.bytes().begin(), out.bytes().end());
  RecordReader in(bytes, "it");
  const auto loaded = index.load(shape, 1, 777, &in);
  ASSERT_TRUE(loaded);
  EXPECT_TRUE(index.formed(*loaded->index));
  const GraphShape of{777, 64, GraphOptions{}.degree};
  for (const std::size_t at : {of.links_at(), of.entries_at()}) {
    std::vector<std::byte> broken = bytes;
    broken[at] = broken[at + 1] = std::byte{0xff};
    RecordReader astray(broken, "it");
    const auto refused = index.load(shape, 1, 777, &astray);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::corrupt);
  }
}

}  // namespace
}  // namespace thermocline
