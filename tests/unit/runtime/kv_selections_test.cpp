// Selections that outlive their step belong to a timeline: who else is in a step, what was given up
// and what goes on elsewhere do not show.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/kv_cache.h"
#include "tests/support/dense_oracle.h"
#include "tests/support/written_rows.h"

namespace thermocline {
namespace {

// Two layers of two heads, the second one asked by the first where layers share.
CacheOptions options_for(const std::string& method, std::vector<std::string> overrides) {
  CacheOptions options;
  options.layers.assign(2, plain_layer(2, 2, 32, 48));
  options.method = method;
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.method_overrides = std::move(overrides);
  for (const char* more : {"select.share=0.05", "steady.recent=16", "steady.seal=64"})
    options.method_overrides.push_back(more);
  options.max_positions = 1200;
  options.max_timelines = 3;
  return options;
}

// Rows are unrelated: about half of the queries have a cosine above 0 to any other.
const std::vector<std::string> kHalf = {"select.similarity=0"};
const std::vector<std::string> kAlways = {"select.similarity=-1"};

class Selections {
 public:
  explicit Selections(const CacheOptions& options, int threads = 1) {
    auto made = KvCache::create(options, threads, "auto");
    EXPECT_TRUE(made) << (made ? "" : made.error().message);
    cache_ = std::move(*made);
  }
  KvCache& cache() { return *cache_; }
  Timeline read(unsigned text, std::uint32_t rows = 600) {
    Timeline timeline = std::move(*cache_->start());
    EXPECT_TRUE(advance(cache_.get(), timeline, rows, Pass::prefill, text));
    return timeline;
  }
  std::vector<float> decode(const Timeline& timeline, std::uint32_t steps, unsigned text) {
    std::vector<float> all;
    for (std::uint32_t i = 0; i < steps; ++i) {
      const auto out = advance(cache_.get(), timeline, 1, Pass::decode, text);
      EXPECT_TRUE(out) << (out ? "" : out.error().message);
      all.insert(all.end(), out->begin(), out->end());
    }
    return all;
  }
  std::uint64_t index_bytes() const { return cache_->report().index_bytes_read; }

  // A row of each timeline in one step, the k-th of rows that its text and position decide; or,
  // given up, none.
  enum class End { committed, given_up };
  std::vector<std::vector<float>> step(const std::vector<const Timeline*>& timelines,
                                       End end = End::committed) {
    std::vector<Token> at;
    for (const Timeline* timeline : timelines) at.push_back({timeline->id(), timeline->length()});
    std::vector<std::vector<float>> out(at.size());
    EXPECT_TRUE(cache_->begin(at, Pass::decode));
    for (std::uint32_t l = 0; l < 2; ++l) {
      std::vector<float> keys, values, queries, attended(at.size() * 4 * 48);
      for (std::size_t r = 0; r < at.size(); ++r) {
        std::mt19937 random(at[r].position * 2 + l);
        for (auto [into, count] : {std::pair{&keys, 64}, {&values, 96}, {&queries, 128}}) {
          const auto drawn = random_rows(random, static_cast<std::size_t>(count), 2.0f);
          into->insert(into->end(), drawn.begin(), drawn.end());
        }
      }
      const std::size_t n = at.size();
      EXPECT_TRUE(cache_->append(LayerId{l}, {keys.data(), n, 64}, {values.data(), n, 96}));
      EXPECT_TRUE(cache_->attend(LayerId{l}, {queries.data(), n, 128}, {attended.data(), n, 192}));
      for (std::size_t r = 0; r < n; ++r)
        out[r].insert(out[r].end(), attended.begin() + static_cast<std::ptrdiff_t>(r * 192),
                      attended.begin() + static_cast<std::ptrdiff_t>((r + 1) * 192));
    }
    if (end == End::given_up) {
      cache_->rollback();
    } else {
      EXPECT_TRUE(cache_->commit());
    }
    return out;
  }

 private:
  std::unique_ptr<KvCache> cache_;
};

TEST(KvSelections, WhatIsAlikeIsNotSearchedAgainUntilRowsAreSealed) {
  Selections all(options_for("tokenselect", kAlways));
  const Timeline timeline = all.read(1);
  all.decode(timeline, 1, 1);
  const std::uint64_t first = all.index_bytes();
  EXPECT_GT(first, 0u);
  const std::uint64_t sealed = all.cache().report().rows_sealed;
  while (all.cache().report().rows_sealed == sealed) {
    EXPECT_EQ(all.index_bytes(), first);
    all.decode(timeline, 1, 1);
  }
  all.decode(timeline, 1, 1);  // what was sealed is searched with the rest
  EXPECT_GT(all.index_bytes(), 2 * first);
}

// Where no row can be sealed there is nothing to choose from, and nothing to remember.
TEST(KvSelections, TooShortATextIsReadWhole) {
  for (const char* method : {"tokenselect", "louiskv", "tidaldecode"}) {
    std::vector<std::string> overrides;
    if (method == std::string("tidaldecode"))
      overrides = {"select.choose_in=0", "select.dense_layers=0"};
    overrides.push_back("steady.sink=4");
    CacheOptions options = options_for(method, overrides);
    options.max_positions = 30;
    CacheOptions exact = options;
    exact.method = "exact";
    exact.method_overrides = {"steady.sink=4", "steady.recent=16", "steady.seal=64"};
    Selections some(options), all(exact);
    const Timeline one = some.read(1, 5), other = all.read(1, 5);
    for (int i = 0; i < 20; ++i) EXPECT_EQ(some.step({&one}), all.step({&other})) << method;
    EXPECT_EQ(some.index_bytes(), 0u);
  }
}

TEST(KvSelections, WhatDiffersIsSearched) {
  const auto bytes = [](std::vector<std::string> overrides) {
    Selections some(options_for("tokenselect", std::move(overrides)));
    const Timeline timeline = some.read(1);
    some.decode(timeline, 40, 1);
    return some.index_bytes();
  };
  const std::uint64_t each = bytes({"select.reuse=never"}), none = bytes({"select.similarity=1"});
  EXPECT_EQ(none, each);
  EXPECT_LT(bytes(kHalf), each * 9 / 10);
  EXPECT_GT(bytes(kHalf), bytes(kAlways));
}

TEST(KvSelections, OthersInTheStepAndThreadsDoNotShow) {
  for (const char* method : {"tokenselect", "louiskv", "tidaldecode"}) {
    SCOPED_TRACE(method);
    std::vector<std::string> overrides = kHalf;
    if (method == std::string("tidaldecode"))
      overrides = {"select.choose_in=0", "select.dense_layers=0"};
    Selections alone(options_for(method, overrides));
    const Timeline a = alone.read(1), b = alone.read(2);
    Selections batch(options_for(method, overrides), 2);
    const Timeline c = batch.read(1), d = batch.read(2);
    for (int i = 0; i < 90; ++i) {  // through a seal
      const auto of_a = alone.step({&a}), of_b = alone.step({&b});
      const auto both = i % 3 == 0 ? batch.step({&d, &c}) : batch.step({&c, &d});
      ASSERT_EQ(both[i % 3 == 0], of_a[0]) << i;
      ASSERT_EQ(both[i % 3 != 0], of_b[0]) << i;
    }
  }
}

TEST(KvSelections, AStepThatIsGivenUpLeavesNone) {
  Selections some(options_for("tokenselect", kHalf)), others(options_for("tokenselect", kHalf));
  const Timeline a = some.read(1), b = others.read(1);
  for (int i = 0; i < 20; ++i) {
    if (i % 2 == 0) {
      const Timeline other = some.read(3, 300);
      some.step({&a, &other}, Selections::End::given_up);
    }
    ASSERT_EQ(some.step({&a}), others.step({&b})) << i;
  }
}

TEST(KvSelections, AForkGoesOnAsItsTextWould) {
  Selections some(options_for("louiskv", kHalf));
  const Timeline text = some.read(1);
  for (int i = 0; i < 10; ++i) some.step({&text});
  const Timeline fork = std::move(*text.fork());
  for (int i = 0; i < 20; ++i) ASSERT_EQ(some.step({&text}), some.step({&fork})) << i;
}

TEST(KvSelections, ACutOneSelectsAnew) {
  Selections some(options_for("tokenselect", kAlways));
  Timeline timeline = some.read(1);
  some.decode(timeline, 3, 1);
  const std::uint64_t before = some.index_bytes();
  ASSERT_TRUE(timeline.truncate(timeline.length()));  // nothing
  some.decode(timeline, 1, 1);
  EXPECT_EQ(some.index_bytes(), before);
  ASSERT_TRUE(timeline.truncate(timeline.length() - 1));
  some.decode(timeline, 1, 1);
  EXPECT_GT(some.index_bytes(), before);
}

// Of several rows of one timeline, each compares with the step before and the last one is kept.
TEST(KvSelections, RowsOfOneStepDoNotWaitForEachOther) {
  Selections some(options_for("tokenselect", kAlways));
  const Timeline timeline = some.read(1);
  ASSERT_TRUE(advance(&some.cache(), timeline, 4, Pass::decode, 1));
  const std::uint64_t four = some.index_bytes();
  ASSERT_TRUE(advance(&some.cache(), timeline, 4, Pass::decode, 1));
  EXPECT_EQ(some.index_bytes(), four);
  Selections one(options_for("tokenselect", kAlways));
  const Timeline other = one.read(1);
  one.decode(other, 1, 1);
  EXPECT_EQ(four, 4 * one.index_bytes());
}

TEST(KvSelections, TheyAreInThePlanAndInTheLedger) {
  const auto selections = [](const MemoryPlan& plan) {
    std::uint64_t bytes = 0;
    for (const MemoryLine& line : plan.lines)
      if (line.purpose == "selections") bytes += line.bytes;
    return bytes;
  };
  CacheOptions options = options_for("tokenselect", {});
  const auto plan = KvCache::plan(options);
  ASSERT_TRUE(plan) << plan.error().message;
  Selections some(options);
  std::vector<Timeline> timelines;
  for (int i = 0; i < 3; ++i) timelines.push_back(std::move(*some.cache().start()));
  EXPECT_GT(selections(*plan), 0u);
  EXPECT_EQ(selections(some.cache().usage()), selections(*plan));
  timelines.clear();
  EXPECT_EQ(selections(some.cache().usage()), 0u);
  EXPECT_EQ(selections(*KvCache::plan(options_for("tidaldecode", {}))), 0u);
}

TEST(KvSelections, LayersThatShareSearchOnce) {
  const auto bytes = [](std::vector<std::string> overrides) {
    overrides.push_back("select.dense_layers=0");
    Selections some(options_for("tidaldecode", std::move(overrides)));
    const Timeline timeline = some.read(1);
    some.decode(timeline, 10, 1);
    return some.index_bytes();
  };
  EXPECT_EQ(2 * bytes({"select.choose_in=0"}), bytes({"select.layers=each"}));
  EXPECT_EQ(bytes({"select.choose_in=0", "select.choose_again_in=1"}),
            bytes({"select.layers=each"}));
}

// A layer that is named and cannot choose is said; the others do without.
TEST(KvSelections, ALayerThatCannotChooseIsNoted) {
  CacheOptions options = options_for("tidaldecode", {});
  options.layers = {plain_layer(2, 2, 32, 32), plain_layer(2, 2, 32, 32),
                    plain_layer(2, 2, 32, 32)};
  const auto one = KvCache::create(options, 1, "auto");
  ASSERT_TRUE(one) << one.error().message;
  ASSERT_EQ((*one)->notes().size(), 1u);
  EXPECT_EQ((*one)->notes()[0],
            "select.choose_again_in = 13 has no effect: the model has layers 0 to 2");
  options.layers[2].window = 64;
  const auto other = KvCache::create(options, 1, "auto");
  ASSERT_EQ((*other)->notes().size(), 2u);
  EXPECT_EQ((*other)->notes()[0],
            "select.choose_in = 2 has no effect: that layer has a sliding window");
}

TEST(KvSelections, ASessionIsRefusedByName) {
  CacheOptions options = options_for("tokenselect", {});
  options.session.path = ::testing::TempDir() + "selections.tls";
  const auto cache = KvCache::create(options, 1, "auto");
  ASSERT_FALSE(cache);
  EXPECT_EQ(cache.error().code, ErrorCode::unsupported);
  for (const char* part : {"select.reuse = similar", "select.reuse=never", "--session"})
    EXPECT_NE(cache.error().message.find(part), std::string::npos) << cache.error().message;
}

}  // namespace
}  // namespace thermocline
