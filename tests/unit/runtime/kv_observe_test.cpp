// What a study is shown: rows as steps read them, and which of them a step attends.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "runtime/kv_cache.h"
#include "runtime/observer.h"
#include "tests/support/written_rows.h"
#include "tiers/block.h"

namespace thermocline {
namespace {

std::unique_ptr<KvCache> open(const char* method, std::vector<std::string> settings = {}) {
  CacheOptions options;
  options.layers = {plain_layer(2, 3, 32, 48), plain_layer(2, 1, 32, 32, 100)};
  options.method = method;
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.method_overrides = std::move(settings);
  options.max_positions = 3000;
  options.max_timelines = 2;
  auto cache = KvCache::create(options, 2, "auto");
  EXPECT_TRUE(cache) << (cache ? "" : cache.error().message);
  return cache ? std::move(*cache) : nullptr;
}

using Positions = std::vector<std::uint32_t>;
class Seen final : public AttendObserver {
 public:
  void attended(const AttendedList& list) override {
    lists[{index(list.layer), list.head}] = Positions(list.positions.begin(), list.positions.end());
    coded[{index(list.layer), list.head}] = Positions(list.coded.begin(), list.coded.end());
    floats = list.queries.size();
    at = list.row.position;
  }
  std::map<std::pair<std::uint32_t, std::uint32_t>, Positions> lists, coded;
  std::size_t floats = 0;
  std::uint32_t at = 0;
};

constexpr std::uint32_t kRows = 2000;

TEST(Observer, IsToldEveryRowThatIsAttendedAndTheReportCounts) {
  for (const char* method : {"exact", "sketch", "int8", "streaming", "ladder2"}) {
    const auto cache = open(method, std::string(method) == "streaming"
                                        ? std::vector<std::string>{"steady.recent=100"}
                                        : std::vector<std::string>{});
    const Timeline timeline = std::move(*cache->start());
    ASSERT_TRUE(advance(cache.get(), timeline, kRows, Pass::prefill));
    Seen seen;
    cache->observe(&seen);
    const CacheReport before = cache->report();
    ASSERT_TRUE(advance(cache.get(), timeline, 1, Pass::decode));
    ASSERT_EQ(seen.lists.size(), 4u) << method;
    EXPECT_EQ(seen.at, kRows);
    EXPECT_EQ(seen.floats, 32u);  // of the last layer: one query head
    std::uint64_t told = 0;
    for (const auto& [list, positions] : seen.lists) {
      EXPECT_TRUE(std::is_sorted(positions.begin(), positions.end()));
      EXPECT_EQ(std::adjacent_find(positions.begin(), positions.end()), positions.end());
      EXPECT_EQ(positions.back(), kRows) << "its own row";
      told += positions.size();
    }
    EXPECT_EQ(told, cache->report().rows_read - before.rows_read) << method;
    std::uint64_t by_codes = 0;
    for (const auto& [list, positions] : seen.coded) {
      EXPECT_TRUE(std::is_sorted(positions.begin(), positions.end()));
      Positions both;
      std::ranges::set_intersection(positions, seen.lists.at(list), std::back_inserter(both));
      EXPECT_TRUE(both.empty()) << "a row is attended once";
      by_codes += positions.size();
    }
    EXPECT_EQ(by_codes, cache->report().codes_read - before.codes_read) << method;
    EXPECT_EQ(by_codes > 0, std::string(method) == "ladder2");
    EXPECT_EQ(seen.lists.at({1, 0}).size(), 100u) << "a window's";
    Positions all(kRows + 1);
    std::iota(all.begin(), all.end(), 0);
    const bool everything = std::string(method) == "exact" || std::string(method) == "int8";
    EXPECT_EQ(seen.lists.at({0, 1}) == all, everything) << method;
    cache->observe(nullptr);
    ASSERT_TRUE(advance(cache.get(), timeline, 1, Pass::decode));
    EXPECT_EQ(seen.at, kRows) << "nobody is told";
  }
}

TEST(Read, GivesTheSameRowsWhateverOrderTheyAreStoredIn) {
  const auto exact = open("exact"), sketch = open("sketch");
  const Timeline one = std::move(*exact->start()), other = std::move(*sketch->start());
  ASSERT_TRUE(advance(exact.get(), one, kRows, Pass::prefill));
  ASSERT_TRUE(sketch->copy(one, other));
  const auto read = [](KvCache* cache, const Timeline& timeline, std::uint32_t first,
                       std::uint32_t rows) {
    std::vector<float> keys(rows * 64), values(rows * 96);
    EXPECT_TRUE(cache->read(timeline, LayerId{0}, first, {keys.data(), rows, 64},
                            {values.data(), rows, 96}));
    keys.insert(keys.end(), values.begin(), values.end());
    return keys;
  };
  const std::vector<float> all = read(exact.get(), one, 0, kRows);
  EXPECT_EQ(all, read(sketch.get(), other, 0, kRows));
  EXPECT_NE(all[0], 0);
  for (const std::uint32_t position : {0u, 3u, 4u, 700u, kRows - 1}) {
    const std::vector<float> row = read(sketch.get(), other, position, 1);
    EXPECT_TRUE(std::equal(row.begin(), row.begin() + 64, all.begin() + position * 64));
    EXPECT_TRUE(std::equal(row.begin() + 64, row.end(),
                           all.begin() + std::ptrdiff_t{kRows} * 64 + position * 96));
  }
}

TEST(Read, RefusesWhatIsNotThere) {
  const auto cache = open("exact"), streaming = open("streaming", {"steady.recent=100"});
  const Timeline timeline = std::move(*cache->start()), dropped = std::move(*streaming->start());
  ASSERT_TRUE(advance(cache.get(), timeline, kRows, Pass::prefill));
  ASSERT_TRUE(advance(streaming.get(), dropped, kRows, Pass::prefill));
  std::vector<float> keys(64), values(96);
  const MatView<float> k{keys.data(), 1, 64}, v{values.data(), 1, 96};
  EXPECT_EQ(cache->read(timeline, LayerId{0}, kRows, k, v).error().code,
            ErrorCode::invalid_argument);
  EXPECT_EQ(cache->read(timeline, LayerId{2}, 0, k, v).error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(cache->read(timeline, LayerId{0}, 0, k, k).error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(cache->read(dropped, LayerId{0}, 0, k, v).error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(streaming->read(dropped, LayerId{0}, 500, k, v).error().code, ErrorCode::unsupported);
  EXPECT_TRUE(streaming->read(dropped, LayerId{0}, 0, k, v)) << "a sink";
  const MatView<float> narrow{values.data(), 1, 64};
  EXPECT_EQ(cache->read(timeline, LayerId{1}, 0, k, narrow).error().code, ErrorCode::unsupported);
}

}  // namespace
}  // namespace thermocline
