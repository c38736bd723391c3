// Keys that are kept as scores see them: what is exact stays so to the bit, whoever keeps them.
#include "runtime/key_balance.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "runtime/kv_cache.h"
#include "runtime/model/query_powers.h"
#include "runtime/observer.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/written_rows.h"

namespace thermocline {
namespace {

constexpr std::uint32_t kRows = 1500;
constexpr char kBalanced[] = "keys.balance=queries";

std::vector<LayerSpec> layers() { return {plain_layer(2, 3, 32, 48), plain_layer(1, 2, 64, 64)}; }

CacheOptions options_for(const char* method, std::vector<std::string> settings) {
  CacheOptions options;
  options.layers = layers();
  options.method = method;
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.method_overrides = std::move(settings);
  options.max_positions = 3000;
  options.max_timelines = 2;
  return options;
}

std::unique_ptr<KvCache> open(const CacheOptions& options) {
  auto cache = KvCache::create(options, 2, "auto");
  EXPECT_TRUE(cache) << (cache ? "" : cache.error().message);
  return cache ? std::move(*cache) : nullptr;
}

std::unique_ptr<KvCache> open(const char* method, std::vector<std::string> settings) {
  return open(options_for(method, std::move(settings)));
}

std::string refusal(const CacheOptions& options) {
  const auto cache = KvCache::create(options, 1, "auto");
  return cache ? "accepted" : cache.error().message;
}

std::vector<float> keys_of(KvCache* cache, const Timeline& timeline) {
  std::vector<float> keys(kRows * 64), values(kRows * 96);
  EXPECT_TRUE(
      cache->read(timeline, LayerId{0}, 0, {keys.data(), kRows, 64}, {values.data(), kRows, 96}));
  return keys;
}

class Queries final : public AttendObserver {
 public:
  void attended(const AttendedList& list) override {
    all.insert(all.end(), list.queries.begin(), list.queries.end());
  }
  std::vector<float> all;
};

TEST(KeyBalance, LeavesExactAttentionAsItIsToTheBit) {
  const auto plain = open("exact", {}), balanced = open("exact", {kBalanced});
  Timeline one = std::move(*plain->start()), other = std::move(*balanced->start());
  Queries asked, asked_balanced;
  plain->observe(&asked);
  balanced->observe(&asked_balanced);
  for (const Pass pass : {Pass::prefill, Pass::decode})
    EXPECT_EQ(*advance(plain.get(), one, pass == Pass::prefill ? kRows : 1, pass),
              *advance(balanced.get(), other, pass == Pass::prefill ? kRows : 1, pass));
  EXPECT_EQ(asked.all, asked_balanced.all);
  EXPECT_EQ(keys_of(plain.get(), one), keys_of(balanced.get(), other));
  ASSERT_TRUE(one.truncate(700) && other.truncate(700));
  EXPECT_EQ(*advance(plain.get(), one, 1, Pass::decode),
            *advance(balanced.get(), other, 1, Pass::decode));
}

TEST(KeyBalance, ChangesWhatCodesLose) {
  const auto plain = open("int8", {}), balanced = open("int8", {kBalanced});
  const Timeline one = std::move(*plain->start()), other = std::move(*balanced->start());
  ASSERT_TRUE(advance(plain.get(), one, kRows, Pass::prefill));
  ASSERT_TRUE(advance(balanced.get(), other, kRows, Pass::prefill));
  EXPECT_NE(keys_of(plain.get(), one), keys_of(balanced.get(), other));
}

TEST(KeyBalance, KeepsWhatF16HasNoRoomForAsTheLargest) {
  LayerSpec layer = layers()[0];
  layer.query_powers.assign(32, kMostQueryPower);
  const KeyBalance balance = KeyBalance::of(layer);
  std::vector<float> key(32, -10000.0f);
  key[1] = 8000.0f;
  balance.keep(key.data());
  EXPECT_EQ(key[0], -65504.0f);
  EXPECT_EQ(key[1], 64000.0f);
}

// A cache that balances takes the rows of one that does not as if it had read them, and the other
// way round.
TEST(KeyBalance, RowsAreCopiedToHowTheOtherCacheKeepsThem) {
  for (const bool to_balanced : {true, false}) {
    const std::vector<std::string> yes = {kBalanced}, no;
    const auto from = open("exact", to_balanced ? no : yes);
    const auto into = open("sketch", {to_balanced ? kBalanced : "keys.balance=no"});
    const Timeline written = std::move(*from->start());
    const Timeline copied = std::move(*into->start()), read = std::move(*into->start());
    ASSERT_TRUE(advance(from.get(), written, kRows, Pass::prefill));
    ASSERT_TRUE(into->copy(written, copied));
    ASSERT_TRUE(advance(into.get(), read, kRows, Pass::prefill));
    for (int step = 0; step < 3; ++step)
      ASSERT_EQ(*advance(into.get(), copied, 1, Pass::decode),
                *advance(into.get(), read, 1, Pass::decode))
          << (to_balanced ? "to" : "from") << " balanced keys";
  }
}

TEST(KeyBalance, RefusesPowersThatAreNotOfTheLayer) {
  const auto refused = [](const auto& change) {
    CacheOptions options = options_for("exact", {});
    change(&options.layers[0]);
    return refusal(options);
  };
  EXPECT_EQ(refused([](LayerSpec*) {}), "accepted");
  EXPECT_EQ(refused([](LayerSpec* layer) { layer->query_powers.clear(); }), "accepted");
  EXPECT_NE(
      refused([](LayerSpec* layer) { layer->query_powers.pop_back(); }).find("31 query powers"),
      std::string::npos);
  EXPECT_NE(refused([](LayerSpec* layer) {
              layer->query_powers.assign(32, kMostQueryPower + 1);
            }).find("power of 4, they are -8 to 3"),
            std::string::npos);
  EXPECT_NE(refused([](LayerSpec* layer) { ++layer->query_powers[0]; }).find("rotated together"),
            std::string::npos);
}

TEST(KeyBalance, ASessionIsOfItsPowers) {
  const test::TemporaryFolder folder("balance");
  CacheOptions options = options_for("sketch", {});
  options.session.path = folder.path() + "/s.tls";
  {
    const auto cache = open(options);
    const Timeline timeline = std::move(*cache->start());
    ASSERT_TRUE(advance(cache.get(), timeline, kRows, Pass::prefill));
    ASSERT_TRUE(cache->save(timeline, session_text(kRows)));
  }
  CacheOptions others = options;
  others.layers[0].query_powers.assign(32, 1);
  EXPECT_NE(refusal(others).find("query powers"), std::string::npos) << refusal(others);
  EXPECT_EQ(refusal(options), "accepted");
}

TEST(KeyBalance, IsNotAskedOfAMethodThatSealsNothing) {
  EXPECT_NE(refusal(options_for("streaming", {kBalanced})).find("keys.balance = no"),
            std::string::npos);
}

LayerSpec rotated_layer(RopePairs pairs) {
  LayerSpec layer;
  layer.q_heads = layer.kv_heads = 1;
  layer.key_dim = layer.value_dim = 16;
  layer.rope.pairs = pairs;
  layer.rope.inverse_frequency.assign(4, 1.0f);  // the first eight channels
  return layer;
}

TEST(QueryPowers, AreTheNormsWeightsByPowersOfTwoAroundTheirMiddle) {
  std::vector<float> norm(16, 1.0f);
  norm[0] = norm[4] = 4.0f;  // a pair of halves
  norm[9] = -0.25f;          // not rotated
  std::vector<std::int8_t> powers = query_powers(rotated_layer(RopePairs::halves), norm);
  std::vector<std::int8_t> expected(16, 0);
  expected[0] = expected[4] = 2;
  expected[9] = -2;
  EXPECT_EQ(powers, expected);
  // The same weights where neighbours are rotated together: of 4 and 1 both are as if 2.9.
  powers = query_powers(rotated_layer(RopePairs::neighbours), norm);
  for (const std::size_t d : {0, 1, 4, 5}) EXPECT_EQ(powers[d], 1) << d;
  EXPECT_EQ(powers[2], 0);
  EXPECT_EQ(powers[9], -2);
}

TEST(QueryPowers, KeepWhatNoQueryHasAndGiveUpWhereNothingIsKnown) {
  std::vector<float> norm(16, 1.0f);
  norm[12] = 0.0f;
  const std::vector<std::int8_t> powers = query_powers(rotated_layer(RopePairs::halves), norm);
  EXPECT_EQ(powers[12], -5);  // a thirtieth
  EXPECT_EQ(powers[0], 0);
  const LayerSpec layer = rotated_layer(RopePairs::halves);
  EXPECT_TRUE(query_powers(layer, {}).empty());
  EXPECT_TRUE(query_powers(layer, std::vector<float>(16, 0.7f)).empty()) << "all alike";
  EXPECT_TRUE(query_powers(layer, std::vector<float>(16, 0.0f)).empty());
  norm[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(query_powers(layer, norm).empty());
  norm[3] = 3e38f;  // whose square is no float
  for (const std::int8_t power : query_powers(layer, norm)) {
    EXPECT_GE(power, kLeastQueryPower);
    EXPECT_LE(power, kMostQueryPower);
  }
}

}  // namespace
}  // namespace thermocline
