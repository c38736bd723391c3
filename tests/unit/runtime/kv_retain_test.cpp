// A prompt of which some rows are dropped: each KV head keeps rows of its own, those are the rows
// that are attended afterwards, and whatever would need the others is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "runtime/kv_cache.h"
#include "runtime/observer.h"
#include "tests/support/dense_oracle.h"
#include "tests/support/written_rows.h"

namespace thermocline {
namespace {

constexpr std::uint32_t kKvHeads = 2, kGroup = 2, kKey = 32, kValue = 48;
constexpr std::uint32_t kSink = 4, kRecent = 32, kPrompt = 600;

CacheOptions options_for(const std::string& method, std::vector<std::string> overrides = {}) {
  CacheOptions options;
  options.layers = {plain_layer(kKvHeads, kGroup, kKey, kValue)};
  options.layers[0].rope.inverse_frequency.clear();
  options.method = method;
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.method_overrides = std::move(overrides);
  for (const char* more : {"steady.sink=4", "steady.recent=32", "steady.seal=64"})
    options.method_overrides.push_back(more);
  options.max_positions = 1200;
  options.max_timelines = 3;
  return options;
}

// Which positions each KV head attended in the last step.
class Attended final : public AttendObserver {
 public:
  void attended(const AttendedList& list) override {
    of_head[list.head].assign(list.positions.begin(), list.positions.end());
  }
  std::map<std::uint32_t, std::vector<std::uint32_t>> of_head;
};

// A text whose rows are known, in a layer without rotation.
class Text {
 public:
  explicit Text(const CacheOptions& options) {
    auto made = KvCache::create(options, 2, "auto");
    EXPECT_TRUE(made) << (made ? "" : made.error().message);
    cache = std::move(*made);
    cache->observe(&attended);
    timeline = std::move(*cache->start());
  }
  // The keys of `planted` positions are like the queries of the last 16 rows in one head each.
  void read(std::uint32_t rows, const std::vector<std::uint32_t>& planted = {}) {
    std::vector<float> k = random_rows(random_, rows * kKvHeads * kKey);
    std::vector<float> q = random_rows(random_, rows * kKvHeads * kGroup * kKey);
    for (std::size_t i = 0; i < planted.size(); ++i) {
      const std::size_t head = i % kKvHeads;
      for (std::uint32_t d = 0; d < kKey; ++d)
        k[(planted[i] * kKvHeads + head) * kKey + d] = d % 2 ? 3.0f : -3.0f;
    }
    for (std::uint32_t r = rows - 16; !planted.empty() && r < rows; ++r)
      for (std::uint32_t i = 0; i < kKvHeads * kGroup * kKey; ++i)
        q[r * kKvHeads * kGroup * kKey + i] = i % 2 ? 1.5f : -1.5f;
    take(rows, Pass::prefill, k, q);
  }
  void decode(std::uint32_t steps) {
    for (std::uint32_t i = 0; i < steps; ++i)
      take(1, Pass::decode, random_rows(random_, kKvHeads * kKey),
           random_rows(random_, kKvHeads * kGroup * kKey, 2.0f));
  }
  // What the last step's queries attend of the positions that were attended, in double.
  std::vector<double> right() const {
    std::vector<double> all;
    for (std::uint32_t h = 0; h < kKvHeads * kGroup; ++h) {
      const std::uint32_t head = h / kGroup;
      double sum = 0;
      std::vector<double> acc(kValue);
      for (const std::uint32_t p : attended.of_head.at(head)) {
        double dot = 0;
        for (std::uint32_t d = 0; d < kKey; ++d)
          dot += double{keys_[(p * kKvHeads + head) * kKey + d]} * queries_[h * kKey + d];
        const double weight = std::exp(dot * cache->layers()[0].scale);
        sum += weight;
        for (std::uint32_t d = 0; d < kValue; ++d)
          acc[d] += weight * values_[(p * kKvHeads + head) * kValue + d];
      }
      for (const double a : acc) all.push_back(a / sum);
    }
    return all;
  }

  std::unique_ptr<KvCache> cache;
  Attended attended;
  Timeline timeline;
  std::vector<float> out;  // of the last step

 private:
  void take(std::uint32_t rows, Pass pass, const std::vector<float>& k,
            const std::vector<float>& q) {
    const auto v = random_rows(random_, rows * kKvHeads * kValue);
    std::vector<Token> at;
    for (std::uint32_t r = 0; r < rows; ++r) at.push_back({timeline.id(), timeline.length() + r});
    out.assign(std::size_t{rows} * kKvHeads * kGroup * kValue, 0.0f);
    const std::size_t n = rows;
    ASSERT_TRUE(cache->begin(at, pass));
    ASSERT_TRUE(cache->append(LayerId{0}, {k.data(), n, kKvHeads * kKey},
                              {v.data(), n, kKvHeads * kValue}));
    ASSERT_TRUE(cache->attend(LayerId{0}, {q.data(), n, kKvHeads * kGroup * kKey},
                              {out.data(), n, kKvHeads * kGroup * kValue}));
    ASSERT_TRUE(cache->commit());
    keys_.insert(keys_.end(), k.begin(), k.end());
    values_.insert(values_.end(), v.begin(), v.end());
    queries_ = q;
  }

  std::mt19937 random_{5};
  std::vector<float> keys_, values_, queries_;
};

class KvRetain : public ::testing::TestWithParam<const char*> {};

// Of the prompt's rows the 512 from position 4 on leave the tail, as one segment.
TEST_P(KvRetain, WhatIsKeptIsAttendedAsItWas) {
  for (const char* by : {"everything", "flat", "clusters", "sketch"}) {
    SCOPED_TRACE(by);
    Text text(options_for(GetParam(), {"select.by=" + std::string(by), "retain.share=0.125"}));
    text.read(kPrompt);
    EXPECT_EQ(text.cache->report().rows_sealed, 64u);
    text.decode(3);
    const auto right = text.right();
    for (const auto& [head, positions] : text.attended.of_head) {
      EXPECT_TRUE(std::adjacent_find(positions.begin(), positions.end()) == positions.end());
      EXPECT_LT(positions.size(), 200u);
    }
    EXPECT_NE(text.attended.of_head.at(0), text.attended.of_head.at(1));
    if (by == std::string("sketch")) continue;  // it estimates the rest
    for (std::size_t i = 0; i < right.size(); ++i) ASSERT_NEAR(text.out[i], right[i], 5e-3) << i;
  }
}

TEST_P(KvRetain, WhatTheLastQueriesAttendStays) {
  const std::vector<std::uint32_t> planted = {40, 41, 300, 310, 512, 513};
  Text text(options_for(GetParam()));
  text.read(kPrompt, planted);
  text.decode(1);
  for (std::size_t i = 0; i < planted.size(); ++i) {
    const auto& positions = text.attended.of_head.at(static_cast<std::uint32_t>(i % kKvHeads));
    EXPECT_TRUE(std::binary_search(positions.begin(), positions.end(), planted[i])) << planted[i];
  }
}

// They are not asked about, and nothing that was kept goes.
TEST_P(KvRetain, WhatADecodeLeavesIsKeptWhole) {
  Text text(options_for(GetParam()));
  text.read(kPrompt);
  text.decode(1);
  const auto before = text.attended.of_head;
  text.decode(200);
  for (const auto& [head, positions] : before) {
    const auto& after = text.attended.of_head.at(head);
    EXPECT_EQ(after.size(), positions.size() + 200);
    EXPECT_TRUE(std::includes(after.begin(), after.end(), positions.begin(), positions.end()));
  }
}

TEST_P(KvRetain, AForkHasTheSameRows) {
  Text text(options_for(GetParam()));
  text.read(kPrompt);
  Timeline fork = std::move(*text.timeline.fork());
  text.decode(1);
  const auto rows = text.attended.of_head;
  std::swap(text.timeline, fork);
  text.decode(1);
  EXPECT_EQ(text.attended.of_head, rows);
}

TEST_P(KvRetain, ACutThatWouldNeedWhatIsGoneIsRefused) {
  Text text(options_for(GetParam()));
  text.read(kPrompt);
  text.decode(50);  // the tail begins at 580
  EXPECT_TRUE(text.timeline.truncate(612));
  const Status cut = text.timeline.truncate(611);
  ASSERT_FALSE(cut);
  EXPECT_EQ(cut.error().code, ErrorCode::unsupported);
  for (const char* part :
       {GetParam(), "from 4 to 580", "612 or later", "4 or before", "not at 611"})
    EXPECT_NE(cut.error().message.find(part), std::string::npos) << cut.error().message;
  EXPECT_EQ(text.timeline.length(), 612u);
  text.decode(1);
  EXPECT_TRUE(text.timeline.truncate(3));
  EXPECT_TRUE(text.timeline.truncate(0));
}

TEST_P(KvRetain, WhatNeedsAllRowsIsRefusedByName) {
  CacheOptions kept = options_for(GetParam());
  kept.session.path = ::testing::TempDir() + "retain.tls";
  const auto session = KvCache::create(kept, 1, "auto");
  ASSERT_FALSE(session);
  EXPECT_EQ(session.error().code, ErrorCode::unsupported);
  for (const std::string& part :
       {"retain.keep = " + std::string(GetParam()), std::string("--session")})
    EXPECT_NE(session.error().message.find(part), std::string::npos) << session.error().message;

  const auto shared = KvCache::create(
      options_for("tidaldecode", {"retain.keep=" + std::string(GetParam())}), 1, "auto");
  ASSERT_FALSE(shared);
  EXPECT_NE(shared.error().message.find("select.layers = each"), std::string::npos);

  Text some(options_for(GetParam())), all(options_for("exact"));
  some.read(kPrompt);
  Timeline empty = std::move(*all.cache->start());
  const Status from = all.cache->copy(some.timeline, empty);
  ASSERT_FALSE(from);
  EXPECT_NE(from.error().message.find("dropped"), std::string::npos);
  all.read(kPrompt);
  empty = std::move(*some.cache->start());
  const Status into = some.cache->copy(all.timeline, empty);
  ASSERT_FALSE(into);
  EXPECT_NE(into.error().message.find("drops rows"), std::string::npos);
  std::vector<float> k(kKvHeads * kKey), v(kKvHeads * kValue);
  EXPECT_FALSE(some.cache->read(some.timeline, LayerId{0}, 100, {k.data(), 1, k.size()},
                                {v.data(), 1, v.size()}));
}

TEST_P(KvRetain, NoMoreIsHeldThanWasPlanned) {
  for (const char* by : {"everything", "clusters"}) {
    CacheOptions options = options_for(GetParam(), {"select.by=" + std::string(by)});
    options.max_timelines = 1;
    const auto plan = KvCache::plan(options, 2);
    ASSERT_TRUE(plan) << plan.error().message;
    std::map<std::string, std::uint64_t> planned;
    for (const MemoryLine& line : plan->lines) planned[line.tier + line.purpose] = line.peak_bytes;
    Text text(options);
    text.read(1000);
    text.decode(200);
    for (const MemoryLine& line : text.cache->usage().lines)
      EXPECT_LE(line.peak_bytes, planned[line.tier + line.purpose]) << line.tier << line.purpose;
  }
}

INSTANTIATE_TEST_SUITE_P(Both, KvRetain, ::testing::Values("snapkv", "h2o"),
                         [](const auto& suite) { return std::string(suite.param); });

}  // namespace
}  // namespace thermocline
