// Rows that are dropped, of a prompt or as steps go on: each KV head keeps rows of its own, those
// are the rows that are attended afterwards, and whatever would need the others is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/half.h"
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

// Which positions each KV head attended in the last step, for its last row and for each.
class Attended final : public AttendObserver {
 public:
  void attended(const AttendedList& list) override {
    of_head[list.head].assign(list.positions.begin(), list.positions.end());
    of_row[{list.row.position, list.head}] = of_head[list.head];
  }
  std::map<std::uint32_t, std::vector<std::uint32_t>> of_head;
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::vector<std::uint32_t>> of_row;
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
  void decode(std::uint32_t steps, std::uint32_t rows_each = 1) {
    for (std::uint32_t i = 0; i < steps; ++i)
      take(rows_each, Pass::decode, random_rows(random_, rows_each * kKvHeads * kKey),
           random_rows(random_, rows_each * kKvHeads * kGroup * kKey, 2.0f));
  }
  // A step whose queries ask for rows like `asked`, and whose own row is like it in one head, or in
  // none.
  void ask(std::optional<std::uint32_t> like_it_in = {}) {
    std::vector<float> k = random_rows(random_, kKvHeads * kKey, 0.1f);
    for (std::uint32_t d = 0; like_it_in && d < kKey; ++d)
      k[*like_it_in * kKey + d] = d % 2 ? 1.0f : -1.0f;
    std::vector<float> q(kKvHeads * kGroup * kKey);
    for (std::uint32_t i = 0; i < q.size(); ++i) q[i] = i % 2 ? 1.0f : -1.0f;
    take(1, Pass::decode, k, q);
  }
  // A step that is not committed.
  void try_in_vain(std::uint32_t rows, Pass pass) {
    const std::mt19937 before = std::exchange(random_, std::mt19937(99));
    ends_ = false;
    take(rows, pass, random_rows(random_, rows * kKvHeads * kKey, 0.1f),
         random_rows(random_, rows * kKvHeads * kGroup * kKey, 4.0f));
    ends_ = true;
    random_ = before;
  }
  void cut(std::uint32_t length) {
    ASSERT_TRUE(timeline.truncate(length));
    keys_.resize(length * kKvHeads * kKey);
    values_.resize(length * kKvHeads * kValue);
  }
  // Of the last step's query heads of a KV head together, what row `row` of them, at a position,
  // gave to each of `positions`, in double.
  std::map<std::uint32_t, double> given(std::uint32_t row, std::uint32_t head,
                                        const std::vector<std::uint32_t>& positions) const {
    std::map<std::uint32_t, double> given;
    for (std::uint32_t g = 0; g < kGroup; ++g) {
      const float* query = queries_.data() + ((row * kKvHeads + head) * kGroup + g) * kKey;
      std::vector<double> weights;
      double sum = 0;
      for (const std::uint32_t p : positions) {
        double dot = 0;
        for (std::uint32_t d = 0; d < kKey; ++d)
          dot += double{keys_[(p * kKvHeads + head) * kKey + d]} * query[d];
        weights.push_back(std::exp(dot * cache->layers()[0].scale));
        sum += weights.back();
      }
      for (std::size_t i = 0; i < positions.size(); ++i) given[positions[i]] += weights[i] / sum;
    }
    return given;
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
    if (!ends_) return cache->rollback();
    ASSERT_TRUE(cache->commit());
    for (const float x : k) keys_.push_back(to_float(to_f16(x)));  // as they are held
    for (const float x : v) values_.push_back(to_float(to_f16(x)));
    queries_ = q;
  }

  std::mt19937 random_{5};
  bool ends_ = true;  // steps are committed
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

// snapkv does not ask about what steps leave; and nothing that was kept goes.
TEST_P(KvRetain, OfWhatStepsLeaveAShareIsKeptOrAll) {
  Text text(options_for(GetParam()));
  text.read(kPrompt);
  text.decode(1);
  const auto before = text.attended.of_head;
  text.decode(200);  // 192 rows leave
  const bool drops = GetParam() == std::string("h2o");
  for (const auto& [head, positions] : before) {
    const auto& after = text.attended.of_head.at(head);
    EXPECT_EQ(after.size(), positions.size() + 200 - (drops ? 192 - 18 : 0));
    std::vector<std::uint32_t> of_prompt = positions;
    std::erase_if(of_prompt, [&](std::uint32_t p) { return drops && p >= 516; });
    EXPECT_TRUE(std::includes(after.begin(), after.end(), of_prompt.begin(), of_prompt.end()));
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

// Short segments, and those of a prompt, become one, which has what was left of each.
TEST_P(KvRetain, SegmentsThatLackRowsAreJoined) {
  for (const char* by : {"everything", "flat", "clusters", "sketch"}) {
    SCOPED_TRACE(by);
    std::map<std::uint32_t, std::vector<std::uint32_t>> rows;
    std::vector<float> out;
    for (const char* join : {"0", "4"}) {
      Text text(options_for(GetParam(),
                            {"select.by=" + std::string(by), "steady.join=" + std::string(join)}));
      text.read(100);    // 64 rows leave
      text.decode(200);  // the cell of 256 is full
      for (int i = 0; i < 3; ++i) {
        text.decode(1);
        if (by == std::string("sketch")) continue;  // it estimates the rest
        for (std::size_t n = 0; const double right : text.right())
          ASSERT_NEAR(text.out[n++], right, 5e-3);
      }
      if (join == std::string("0")) {
        rows = text.attended.of_head;
        out = text.out;
        continue;
      }
      const bool chooses = by != std::string("everything");
      if (!chooses) {
        EXPECT_EQ(text.attended.of_head, rows);
      }
      // They are attended in other folds, or chosen among others.
      EXPECT_EQ(text.out == out, !chooses && GetParam() == std::string("snapkv"));
    }
  }
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
  const std::string watched = GetParam() == std::string("h2o") ? "(rows)" : "(last window)";
  EXPECT_NE(into.error().message.find(watched), std::string::npos) << into.error().message;
  std::vector<float> k(kKvHeads * kKey), v(kKvHeads * kValue);
  EXPECT_FALSE(some.cache->read(some.timeline, LayerId{0}, 100, {k.data(), 1, k.size()},
                                {v.data(), 1, v.size()}));
}

TEST_P(KvRetain, NoMoreIsHeldThanWasPlanned) {
  for (const char* by : {"everything", "clusters"}) {
    CacheOptions options =
        options_for(GetParam(), {"select.by=" + std::string(by), "steady.join=2"});
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

// Steps to come will judge what stays raw, so its votes are counted although nothing leaves yet.
TEST(KvRetainInSteps, APromptOfWhichNothingLeavesTakesWhatIsPlanned) {
  CacheOptions options = options_for("h2o");
  options.layers = {plain_layer(kKvHeads, 8, 128, 64)};
  options.max_positions = kSink + kRecent;
  options.max_timelines = 1;
  const auto plan = KvCache::plan(options, 2);
  ASSERT_TRUE(plan) << plan.error().message;
  options.tiers.host_bytes = plan->total("host");
  const auto cache = KvCache::create(options, 2, "auto");
  ASSERT_TRUE(cache) << cache.error().message;
  const Timeline timeline = std::move(*(*cache)->start());
  const auto out = advance(cache->get(), timeline, options.max_positions, Pass::prefill);
  EXPECT_TRUE(out) << out.error().message;
}

// What steps give, and the prompt's sampled queries, beside sums in double: of what leaves the tail
// together what was given most is kept. Prompts between steps, and several rows a step.
TEST(KvRetainInSteps, WhatWasGivenMostStays) {
  Text text(options_for("h2o", {"retain.share=0.25"}));
  std::map<std::uint32_t, double> sums[kKvHeads];
  const auto tail_begin = [](std::uint32_t length) {
    return length < kSink + kRecent ? kSink : kSink + (length - kSink - kRecent) / 64 * 64;
  };
  std::uint32_t judged = 0;
  const auto follow = [&](std::uint32_t rows, Pass pass) {
    const std::uint32_t before = text.timeline.length(), first = tail_begin(before);
    pass == Pass::prefill ? text.read(rows) : text.decode(1, rows);
    for (std::uint32_t r = 0; r < rows; ++r)
      for (std::uint32_t h = 0; h < kKvHeads; ++h) {
        const std::uint32_t position = before + r;
        if (pass == Pass::prefill && position % 16 > 0) continue;
        std::vector<std::uint32_t> seen = {0, 1, 2, 3};
        std::erase_if(seen, [&](std::uint32_t sink) { return sink > position; });
        for (std::uint32_t p = first; p <= position; ++p) seen.push_back(p);
        if (pass == Pass::decode) seen = text.attended.of_row.at({position, h});
        for (const auto& [p, mass] : text.given(r, h, seen))
          sums[h][p] += pass == Pass::prefill ? 16 * mass : mass;
      }
    const std::uint32_t end = tail_begin(text.timeline.length());
    if (end == first) return;
    const auto at_sealing = std::vector(std::begin(sums), std::end(sums));
    text.decode(1);  // shows what is kept
    for (std::uint32_t h = 0; h < kKvHeads; ++h) {
      const auto& positions = text.attended.of_head.at(h);
      std::vector<double> kept, dropped;
      for (std::uint32_t p = first; p < end; ++p) {
        const bool is_kept = std::binary_search(positions.begin(), positions.end(), p);
        (is_kept ? kept : dropped).push_back(at_sealing[h].at(p));
      }
      ASSERT_EQ(kept.size(), (end - first) / 4);
      EXPECT_GT(*std::ranges::min_element(kept), *std::ranges::max_element(dropped) * 0.999);
      ++judged;
    }
    for (std::uint32_t h = 0; h < kKvHeads; ++h)
      for (const auto& [p, mass] : text.given(0, h, text.attended.of_head.at(h)))
        sums[h][p] += mass;
  };
  follow(300, Pass::prefill);
  for (int i = 0; i < 100; ++i) follow(1, Pass::decode);
  follow(20, Pass::prefill);
  for (int i = 0; i < 30; ++i) follow(3, Pass::decode);
  follow(200, Pass::prefill);
  for (int i = 0; i < 140; ++i) follow(1, Pass::decode);
  EXPECT_GE(judged, 2 * 7u);
}

// Of 64 rows that leave together, eight of which the steps asked for; in each head four of them.
TEST(KvRetainInSteps, HeavyRowsStay) {
  Text text(options_for("h2o", {"retain.share=0.0625"}));
  text.read(36);  // the tail begins at 4
  std::vector<std::uint32_t> heavy[kKvHeads];
  for (std::uint32_t i = 0; i < 96; ++i) {
    const std::uint32_t position = text.timeline.length();
    const bool is_heavy = position < 68 && i % 4 == 1;
    if (is_heavy) heavy[i / 4 % 2].push_back(position);
    text.ask(is_heavy ? std::optional(i / 4 % 2) : std::nullopt);
  }
  for (std::uint32_t h = 0; h < kKvHeads; ++h) {
    ASSERT_EQ(heavy[h].size(), 4u);
    const auto& positions = text.attended.of_head.at(h);
    const std::vector<std::uint32_t> kept(positions.begin() + kSink, positions.begin() + kSink + 4);
    EXPECT_EQ(kept, heavy[h]);
  }
}

TEST(KvRetainInSteps, AStepThatIsRolledBackTeachesNothing) {
  Text text(options_for("h2o")), other(options_for("h2o"));
  for (Text* one : {&text, &other}) one->read(100);
  for (int i = 0; i < 150; ++i) {
    for (const std::uint32_t rows : {1, 4}) other.try_in_vain(rows, Pass::decode);
    if (i % 10 == 0) other.try_in_vain(40, Pass::prefill);
    for (Text* one : {&text, &other}) one->decode(1);
    ASSERT_EQ(text.attended.of_head, other.attended.of_head);
    ASSERT_EQ(text.out, other.out);
  }
}

// What a row got is not what another gets that comes to its place.
TEST(KvRetainInSteps, ARowThatIsCutTakesItsSumAlong) {
  Text text(options_for("h2o", {"retain.share=0.0625"}));
  text.read(36);
  while (text.timeline.length() < 60)
    text.ask(text.timeline.length() == 40 ? std::optional(0) : std::nullopt);
  text.cut(40);
  std::vector<std::uint32_t> heavy;
  while (text.timeline.length() < 132) {
    const std::uint32_t position = text.timeline.length();
    const bool is_heavy = position >= 44 && position < 60 && position % 4 == 0;
    if (is_heavy) heavy.push_back(position);
    text.ask(is_heavy ? std::optional(0) : std::nullopt);
  }
  const auto& positions = text.attended.of_head.at(0);
  const std::vector<std::uint32_t> kept(positions.begin() + kSink, positions.begin() + kSink + 4);
  EXPECT_EQ(kept, heavy);
}

// Several layers, one of them with a window.
CacheOptions layers_for(const std::string& by) {
  CacheOptions options = options_for("h2o", {"select.by=" + by, "steady.join=2"});
  options.layers = {plain_layer(2, 3, 32, 48), plain_layer(1, 2, 64, 64),
                    plain_layer(2, 1, 32, 32, 100), plain_layer(1, 1, 48, 32)};
  return options;
}

std::vector<float> go(KvCache* cache, const Timeline& timeline, std::uint32_t steps,
                      unsigned text = 1) {
  std::vector<float> all;
  for (std::uint32_t i = 0; i < steps; ++i) {
    const auto out = advance(cache, timeline, 1, Pass::decode, text);
    EXPECT_TRUE(out) << out.error().message;
    all.insert(all.end(), out->begin(), out->end());
  }
  return all;
}

TEST(KvRetainInSteps, AForkGoesOnFromTheSumsAndTeachesNobody) {
  const auto cache = std::move(*KvCache::create(layers_for("everything"), 2, "auto"));
  const Timeline timeline = std::move(*cache->start());
  ASSERT_TRUE(advance(cache.get(), timeline, 150, Pass::prefill));
  go(cache.get(), timeline, 50);
  const Timeline other_text = std::move(*timeline.fork()), fork = std::move(*timeline.fork());
  go(cache.get(), other_text, 60, 2);
  const auto right = go(cache.get(), timeline, 200);
  EXPECT_EQ(go(cache.get(), fork, 200), right);
  EXPECT_NE(go(cache.get(), other_text, 140, 2), right);
}

// Steps of two rows of each timeline: what the last of them attended, of each.
std::vector<std::vector<float>> go_together(KvCache* cache, std::span<const Timeline> timelines,
                                            std::uint32_t steps) {
  const LayerSpec& s = cache->layers()[0];
  const std::size_t k = s.kv_heads * s.key_dim, v = s.kv_heads * s.value_dim;
  const std::size_t q = s.q_heads * s.key_dim, o = s.q_heads * s.value_dim;
  std::mt19937 random(8);
  std::vector<float> out;
  for (std::uint32_t i = 0; i < steps; ++i) {
    const auto of_one_k = random_rows(random, 2 * k), of_one_v = random_rows(random, 2 * v),
               of_one_q = random_rows(random, 2 * q, 2.0f);
    std::vector<Token> at;
    std::vector<float> keys, values, queries;
    for (const Timeline& timeline : timelines) {
      for (std::uint32_t r : {0, 1}) at.push_back({timeline.id(), timeline.length() + r});
      keys.insert(keys.end(), of_one_k.begin(), of_one_k.end());
      values.insert(values.end(), of_one_v.begin(), of_one_v.end());
      queries.insert(queries.end(), of_one_q.begin(), of_one_q.end());
    }
    out.resize(at.size() * o);
    EXPECT_TRUE(cache->begin(at, Pass::decode));
    EXPECT_TRUE(
        cache->append(LayerId{0}, {keys.data(), at.size(), k}, {values.data(), at.size(), v}));
    EXPECT_TRUE(
        cache->attend(LayerId{0}, {queries.data(), at.size(), q}, {out.data(), at.size(), o}));
    EXPECT_TRUE(cache->commit());
  }
  std::vector<std::vector<float>> of_each;
  for (auto row = out.begin(); row != out.end(); row += static_cast<std::ptrdiff_t>(2 * o))
    of_each.emplace_back(row, row + static_cast<std::ptrdiff_t>(2 * o));
  return of_each;
}

TEST(KvRetainInSteps, TimelinesOfAStepAreAsEachAlone) {
  const auto cache = std::move(*KvCache::create(options_for("h2o"), 2, "auto"));
  std::vector<Timeline> timelines;
  for (const std::uint32_t rows : {150u, 200u}) {
    timelines.push_back(std::move(*cache->start()));
    ASSERT_TRUE(advance(cache.get(), timelines.back(), rows, Pass::prefill));
  }
  std::vector<std::vector<float>> alone;
  for (const Timeline& timeline : timelines) {
    const Timeline fork = std::move(*timeline.fork());
    alone.push_back(go_together(cache.get(), {&fork, 1}, 80)[0]);
  }
  EXPECT_EQ(go_together(cache.get(), timelines, 80), alone);
}

TEST(KvRetainInSteps, NoHomeOrNumberOfThreadsChangesABit) {
  for (const char* by : {"everything", "flat", "sketch"}) {
    SCOPED_TRACE(by);
    std::vector<float> right;
    for (const int threads : {1, 4})
      for (const char* home : {"host", "device", "disk"}) {
        SCOPED_TRACE(home + std::to_string(threads));
        CacheOptions options = layers_for(by);
        options.max_timelines = 1;
        options.tiers.directory = ::testing::TempDir() + "thermocline-retain";
        if (home == std::string("disk")) {
          options.tiers.disk_bytes = std::uint64_t{64} << 20;
          const auto plan = KvCache::plan(options, threads);
          ASSERT_TRUE(plan);
          options.tiers.host_bytes = 100 << 10;  // beside a few rows
          for (const MemoryLine& line : plan->lines)
            if (line.tier == "host" && line.purpose != "row_cache")
              options.tiers.host_bytes += line.bytes;
        }
        if (home == std::string("device")) {
          options.tiers.device = "host";
          options.tiers.device_bytes = std::uint64_t{64} << 20;
        }
        const auto cache = KvCache::create(options, threads, "auto");
        ASSERT_TRUE(cache) << cache.error().message;
        const Timeline timeline = std::move(*(*cache)->start());
        ASSERT_TRUE(advance(cache->get(), timeline, 150, Pass::prefill));
        auto all = go(cache->get(), timeline, 300);
        const auto more = advance(cache->get(), timeline, 90, Pass::prefill);
        ASSERT_TRUE(more);
        all.insert(all.end(), more->begin(), more->end());
        const auto last = go(cache->get(), timeline, 200);
        all.insert(all.end(), last.begin(), last.end());
        if (right.empty()) right = all;
        ASSERT_TRUE(all == right);
      }
  }
}

// A text that is read as if alone is kept whole; what steps then leave of it is not.
TEST(KvRetainInSteps, ATextOfItsOwnIsKeptUntilStepsFollow) {
  const auto cache = std::move(*KvCache::create(options_for("h2o"), 2, "auto"));
  Attended attended;
  cache->observe(&attended);
  const Timeline timeline = std::move(*cache->start());
  ASSERT_TRUE(advance(cache.get(), timeline, 100, Pass::prefill));  // 64 leave, of which 6 are kept
  ASSERT_TRUE(advance(cache.get(), timeline, 100, Pass::alone));    // 64 more
  go(cache.get(), timeline, 1);
  EXPECT_EQ(attended.of_head.at(0).size(), 201u - 58);
  go(cache.get(), timeline, 64);
  EXPECT_EQ(attended.of_head.at(0).size(), 265u - 2 * 58);
}

INSTANTIATE_TEST_SUITE_P(Both, KvRetain, ::testing::Values("snapkv", "h2o"),
                         [](const auto& suite) { return std::string(suite.param); });

}  // namespace
}  // namespace thermocline
