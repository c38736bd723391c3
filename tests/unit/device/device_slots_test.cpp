// Caches whose rows are at home in host memory and chosen by a device, which fetches those that no
// slot of it holds: the bits of a cache whose rows are all at home there, for any number of slots,
// and no more rows moved than were missing.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "runtime/cache_plan.h"
#include "runtime/kv_cache.h"
#include "runtime/method.h"
#include "runtime/observer.h"
#include "tests/support/written_rows.h"
#include "tests/unit/device/each_device.h"
#include "tests/unit/device/fed_caches.h"
#include "tiers/store/stores.h"

namespace thermocline {
namespace {

constexpr char kDevice[] = "cuda";
constexpr std::uint64_t kPlenty = std::uint64_t{1} << 50;

CacheOptions options_of(const std::string& method, std::uint32_t positions,
                        std::vector<std::string> overrides = {}) {
  CacheOptions options = options_for(method, positions);
  options.layers = {plain_layer(2, 3, 64, 64), plain_layer(2, 2, 64, 32)};
  options.method_overrides = std::move(overrides);
  return on_device(options, kDevice);
}

CacheOptions fetching(CacheOptions options) {
  options.method_overrides.push_back("place.run=fetch");
  return options;
}

CacheOptions in_host_memory(CacheOptions options) {
  options = fetching(std::move(options));
  options.method_overrides.push_back("place.rows=host");
  return options;
}

std::uint64_t held(const KvCache& cache, const std::string& tier, const std::string& purpose) {
  std::uint64_t bytes = 0;
  for (const MemoryLine& line : cache.usage().lines)
    if (line.tier == tier && line.purpose == purpose) bytes += line.bytes;
  return bytes;
}

// Which rows every list of a step read.
class Noted final : public AttendObserver {
 public:
  void attended(const AttendedList& list) override {
    lists.push_back({index(list.layer), list.head,
                     std::set<std::uint32_t>(list.positions.begin(), list.positions.end())});
  }
  struct List {
    std::uint32_t layer = 0, head = 0;
    std::set<std::uint32_t> positions;
  };
  std::vector<List> lists;
};

Method method_of(const CacheOptions& options) {
  const Result<const CpuTable*> cpu = choose_cpu_table("auto");
  Fed::check(cpu ? Status{} : Status(tl::unexpected(cpu.error())));
  auto method =
      load_method(options.method, options.method_directory, options.method_overrides, **cpu);
  Fed::check(method ? Status{} : Status(tl::unexpected(method.error())));
  return std::move(*method);
}

CachePlan plan_of(const CacheOptions& options) {
  auto plan = make_plan(options, method_of(options), 1, kPlenty);
  Fed::check(plan ? Status{} : Status(tl::unexpected(plan.error())));
  return std::move(*plan);
}

// With as little of the device as it can do with: slots for a step's choice.
CacheOptions with_least(CacheOptions options) {
  const Method method = method_of(options);
  std::uint64_t refused = 0, enough = options.tiers.device_bytes;
  while (enough - refused > 1) {
    options.tiers.device_bytes = (refused + enough) / 2;
    (make_plan(options, method, 1, kPlenty) ? enough : refused) = options.tiers.device_bytes;
  }
  options.tiers.device_bytes = enough;
  return options;
}

// As a step that is not committed: what it attended may be in slots, and its rows are gone.
void attempt(KvCache* cache, const Timeline& text, std::uint32_t rows) {
  std::vector<Token> at;
  for (std::uint32_t r = 0; r < rows; ++r) at.push_back({text.id(), text.length() + r});
  Fed::check(cache->begin(at, Pass::decode));
  for (std::uint32_t l = 0; l < cache->layers().size(); ++l) {
    const LayerSpec& spec = cache->layers()[l];
    const std::vector<float> k(rows * spec.kv_heads * spec.key_dim, 0.25f);
    const std::vector<float> v(rows * spec.kv_heads * spec.value_dim, 0.25f);
    std::vector<float> q(rows * spec.q_heads * spec.key_dim);
    for (std::size_t i = 0; i < q.size(); ++i) q[i] = std::sin(static_cast<float>(7 * i + l));
    std::vector<float> out(rows * spec.q_heads * spec.value_dim);
    Fed::check(cache->append(LayerId{l}, {k.data(), rows, k.size() / rows},
                             {v.data(), rows, v.size() / rows}));
    Fed::check(cache->attend(LayerId{l}, {q.data(), rows, q.size() / rows},
                             {out.data(), rows, out.size() / rows}));
  }
  cache->rollback();
}

class DeviceSlotsTest : public OnAGpu {};

TEST_F(DeviceSlotsTest, AnswersAreThoseOfRowsAtHomeThere) {
  for (const auto& [method, overrides] : methods_that_a_device_chooses_by()) {
    SCOPED_TRACE(method + (overrides.empty() ? "" : ", " + overrides[0]));
    const CacheOptions there = options_of(method, 1200, overrides);
    Fed fed({there, with_least(in_host_memory(there))});
    CacheOptions wide = in_host_memory(there);  // whose launches take more, and slots less
    wide.max_positions = 2400;
    wide.max_timelines = 8;
    fed.add(wide, 4);
    for (const std::uint32_t rows : {500u, 300u, 290u}) {
      const auto read = fed.advance(rows, Pass::prefill);
      for (std::size_t c = 1; c < read.size(); ++c)
        EXPECT_TRUE(same_bits(read[0], read[c])) << "cache " << c;
    }
    std::vector<CacheReport> sealed;
    for (const auto& cache : fed.caches) sealed.push_back(cache->report());
    for (const std::uint32_t rows : {1u, 1u, 5u}) {
      const auto out = fed.advance(rows, Pass::decode);
      for (std::size_t c = 1; c < out.size(); ++c)
        EXPECT_TRUE(same_bits(out[0], out[c])) << "cache " << c << ", rows " << rows;
    }
    const CacheReport home = difference(fed.caches[0]->report(), sealed[0]);
    EXPECT_EQ(home.device_bytes_fetched + home.row_cache_hits + home.row_cache_misses, 0u);
    for (std::size_t c = 1; c < fed.caches.size(); ++c) {
      SCOPED_TRACE("cache " + std::to_string(c));
      const CacheReport moved = difference(fed.caches[c]->report(), sealed[c]);
      EXPECT_EQ(moved.rows_read, home.rows_read);
      EXPECT_EQ(moved.codes_read, home.codes_read);
      EXPECT_EQ(moved.summaries_read, home.summaries_read);
      EXPECT_EQ(moved.index_bytes_read, home.index_bytes_read);
      EXPECT_EQ(moved.select_ms, 0.0);  // nobody here chose
      EXPECT_GT(moved.row_cache_hits, 0u);
      EXPECT_GT(moved.row_cache_misses, 0u);
      EXPECT_GT(moved.device_bytes_fetched, 0u);
      EXPECT_EQ(moved.device_bytes_copied, 0u);
      // Of any row once, where it lay.
      EXPECT_EQ(moved.device_bytes_read + moved.host_bytes_read,
                home.device_bytes_read + home.host_bytes_read);
      // What is chosen by was written there, and no rows.
      EXPECT_LT(fed.caches[c]->report().device_bytes_written,
                fed.caches[0]->report().device_bytes_written);
    }
  }
}

// Of each list's choice what no slot holds: with slots for one choice, what the last one had not;
// with slots for all rows, what none had.
TEST_F(DeviceSlotsTest, FetchesWhatNoSlotHolds) {
  CacheOptions ample = in_host_memory(options_of("sketch", 1200));
  ample.layers.push_back(plain_layer(1, 8, 128, 80));
  const CacheOptions least = with_least(ample);
  const Method method = method_of(ample);
  ASSERT_EQ(plan_of(least).slots.of_head, 64u);  // select.min_rows
  ASSERT_EQ(plan_of(ample).slots.of_head, plan_of(ample).slots.rows);
  Fed fed({least, ample});
  for (const std::uint32_t rows : {700u, 390u}) fed.advance(rows, Pass::prefill);
  Noted noted;
  fed.caches[0]->observe(&noted);
  using Rows = std::set<std::uint32_t>;
  std::map<std::pair<std::uint32_t, std::uint32_t>, Rows> last, all;  // by layer and head
  std::size_t hits = 0;
  for (const std::uint32_t rows : {1u, 1u, 2u, 1u, 4u, 1u}) {
    const std::uint32_t sealed_to = method.tail_begin(fed.texts[0].length());
    const CacheReport before[] = {fed.caches[0]->report(), fed.caches[1]->report()};
    noted.lists.clear();
    const auto out = fed.advance(rows, Pass::decode);
    EXPECT_TRUE(same_bits(out[0], out[1]));
    std::uint64_t missed[2] = {}, bytes[2] = {}, chosen = 0;
    for (const Noted::List& list : noted.lists) {
      const LayerSpec& spec = ample.layers[list.layer];
      const Rows read(list.positions.lower_bound(method.sink),
                      list.positions.lower_bound(sealed_to));
      ASSERT_EQ(read.size(), 64u);
      chosen += read.size();
      const std::pair<std::uint32_t, std::uint32_t> head{list.layer, list.head};
      Rows* const held[] = {&last[head], &all[head]};
      for (const std::size_t c : {0, 1})
        for (const std::uint32_t row : read) {
          if (held[c]->contains(row)) continue;
          ++missed[c];
          bytes[c] += 2 * (spec.key_dim + spec.value_dim);
        }
      last[head] = read;
      all[head].insert(read.begin(), read.end());
    }
    for (const std::size_t c : {0, 1}) {
      const CacheReport moved = difference(fed.caches[c]->report(), before[c]);
      EXPECT_EQ(moved.row_cache_misses, missed[c]);
      EXPECT_EQ(moved.row_cache_hits, chosen - missed[c]);
      EXPECT_EQ(moved.device_bytes_fetched, bytes[c]);
      hits += moved.row_cache_hits;
    }
    EXPECT_LE(missed[1], missed[0]);
  }
  EXPECT_GT(hits, 0u);
}

// Rows that steps leave and join, texts that are forked, cut and read on, steps that are given up:
// a copy is never another row's.
TEST_F(DeviceSlotsTest, SlotsFollowTheirRows) {
  CacheOptions there = options_of("sketch", 600, {"steady.join=4", "select.min_rows=40"});
  there.max_timelines = 2;
  Fed fed({there, in_host_memory(there)});  // which has a slot for every row
  const KvCache& cache = *fed.caches[1];
  const auto step = [&](std::uint32_t rows) {
    const auto out = fed.advance(rows, Pass::decode);
    EXPECT_TRUE(same_bits(out[0], out[1]));
  };
  fed.advance(460, Pass::prefill);
  for (int i = 0; i < 6; ++i) {
    step(16);
    attempt(fed.caches[1].get(), fed.texts[1], 1);
  }
  EXPECT_GT(cache.report().rows_joined, 0u);
  std::vector<Timeline> forks;
  for (Timeline& text : fed.texts) {
    forks.push_back(std::move(*text.fork()));
    Fed::check(text.truncate(333));
  }
  step(2);
  // Read on from where it was cut: segments of the same numbers of rows, and of other rows.
  fed.advance(200, Pass::prefill);
  step(1);
  std::swap(fed.texts, forks);
  step(2);
  for (Timeline& text : fed.texts) Fed::check(text.truncate(0));
  fed.advance(460, Pass::prefill);
  for (int i = 0; i < 2; ++i) step(3);
  const std::uint64_t of_two = held(cache, "device", "row_cache");
  forks.clear();
  EXPECT_EQ(2 * held(cache, "device", "row_cache"), of_two);
  fed.texts.clear();
  EXPECT_EQ(held(cache, "device", "row_cache") + held(cache, "device", "index"), 0u);
  EXPECT_EQ(held(cache, "host", "rows"), 0u);
}

// Two timelines in one step have their own slots, and a fork fetches for itself.
TEST_F(DeviceSlotsTest, TimelinesHaveSlotsOfTheirOwn) {
  CacheOptions options = in_host_memory(options_of("ladder2", 1200));
  options.max_timelines = 3;
  auto made = KvCache::create(options, 2, test::float_isa());
  ASSERT_TRUE(made) << made.error().message;
  KvCache& cache = **made;
  std::vector<Timeline> texts;
  for (const std::uint32_t length : {700u, 320u}) {
    texts.push_back(std::move(*cache.start()));
    ASSERT_TRUE(advance(&cache, texts.back(), length, Pass::prefill, length));
  }
  const auto fetched_by = [&](std::uint32_t text) {
    const std::uint64_t before = cache.report().row_cache_misses;
    attempt(&cache, texts[text], 1);
    return cache.report().row_cache_misses - before;
  };
  const std::uint64_t first = fetched_by(0), second = fetched_by(1);
  EXPECT_GT(first, 0u);
  EXPECT_GT(second, 0u);
  for (const std::uint32_t again : {0u, 1u}) EXPECT_EQ(fetched_by(again), 0u);
  texts.push_back(std::move(*texts[0].fork()));
  EXPECT_EQ(fetched_by(2), first);
  for (const std::uint32_t again : {0u, 1u, 2u}) EXPECT_EQ(fetched_by(again), 0u);
}

// As much is taken as was planned, in each tier, and one byte less than the least is refused.
TEST_F(DeviceSlotsTest, TakesWhatIsPlanned) {
  constexpr std::uint32_t kRead = 335, kLength = 403;  // where the tail is longest, a seal later
  CacheOptions options = in_host_memory(options_of("ladder2", kLength));
  options.course = Course{{}, {kRead}};
  options = with_least(options);
  const auto plan = KvCache::plan(options);
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_TRUE(plan->notes.empty());
  EXPECT_EQ(plan->total("device"), options.tiers.device_bytes);
  EXPECT_EQ(peak_of(*plan, "device", "rows") + peak_of(*plan, "host", "index"), 0u);
  Fed fed({options});
  fed.advance(kRead, Pass::prefill);
  while (fed.texts[0].length() < kLength) fed.advance(1, Pass::decode);
  const MemoryPlan usage = fed.caches[0]->usage();
  const auto expect_planned = [&](const char* tier, const char* what) {
    EXPECT_GT(peak_of(*plan, tier, what), 0u) << what;
    EXPECT_LE(peak_of(usage, tier, what), peak_of(*plan, tier, what)) << what;
    EXPECT_GE(20 * peak_of(usage, tier, what), 19 * peak_of(*plan, tier, what)) << what;
  };
  for (const char* what : {"index", "row_cache", "staging"}) expect_planned("device", what);
  for (const char* what : {"rows", "staging", "tail", "tables"}) expect_planned("host", what);
  expect_planned("workspace", "attention");
  // Alone sealing may take more than its line.
  EXPECT_LE(usage.peak_bytes.at("host"), plan->total("host"));
  EXPECT_GE(20 * usage.peak_bytes.at("host"), 19 * plan->total("host"));
  options.tiers.device_bytes -= 1;
  const auto refused = KvCache::plan(options);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::exhausted);
  EXPECT_NE(refused.error().message.find("--kv-device"), std::string::npos)
      << refused.error().message;
  // An emulated device would reach any memory of the host's; a real one what is pinned for it.
  EXPECT_TRUE(plan_of(in_host_memory(options_of("ladder2", kLength))).stores.pinned);
  EXPECT_FALSE(plan_of(options_of("ladder2", kLength)).stores.pinned);
  // More of it is more slots, up to one for every row.
  options.tiers.device_bytes += 4096;
  EXPECT_GT(plan_of(options).slots.of_head, 40u);
  options.tiers.device_bytes = std::uint64_t{64} << 20;
  EXPECT_EQ(plan_of(options).slots.of_head, plan_of(options).slots.rows);
  options.tiers.host_bytes = KvCache::plan(options)->total("host");
  EXPECT_TRUE(KvCache::plan(options));
  options.tiers.host_bytes -= 1;
  EXPECT_FALSE(KvCache::plan(options));
}

// Whole layers are at home on the device where there is room beside what the others are chosen by
// and useful slots, and the others' rows are fetched: neither shows in an answer.
TEST_F(DeviceSlotsTest, AnswersAreTheSameWhicheverLayersFit) {
  CacheOptions there = options_of("sketch", 2000);
  there.layers.assign(6, plain_layer(2, 2, 32, 32));
  const auto home = KvCache::plan(there);
  ASSERT_TRUE(home) << home.error().message;
  Fed fed({there});
  std::set<std::size_t> whole;
  for (const int sixths : {5, 4, 3}) {
    CacheOptions some = fetching(there);
    some.tiers.device_bytes = home->total("device") * static_cast<std::uint64_t>(sixths) / 6;
    const CachePlan plan = plan_of(some);
    EXPECT_LE(plan.device_bytes(), some.tiers.device_bytes);
    EXPECT_GE(plan.slots.of_head, 4 * 64u);
    EXPECT_GT(plan.slots_bytes, 0u);
    whole.insert(static_cast<std::size_t>(
        std::ranges::count(plan.layers, Tier::device, [](const auto& l) { return l.home.tier; })));
    fed.add(some, sixths);
  }
  EXPECT_EQ(whole.size(), 3u);
  EXPECT_GT(*whole.begin(), 0u);
  EXPECT_LT(*whole.rbegin(), 6u);
  fed.advance(1900, Pass::prefill);
  for (const std::uint32_t rows : {1u, 2u, 1u}) {
    const auto out = fed.advance(rows, Pass::decode);
    for (std::size_t c = 1; c < out.size(); ++c)
      EXPECT_TRUE(same_bits(out[0], out[c])) << "cache " << c;
  }
  const CacheReport all = fed.caches[0]->report();
  for (std::size_t c = 1; c < fed.caches.size(); ++c) {
    const CacheReport some = fed.caches[c]->report();
    EXPECT_GT(some.device_bytes_fetched, 0u);
    EXPECT_EQ(some.device_bytes_read + some.device_bytes_fetched, all.device_bytes_read);
  }
  // All of them fit: nothing is fetched, and there are no slots.
  CacheOptions enough = fetching(there);
  enough.tiers.device_bytes = home->total("device");
  EXPECT_EQ(plan_of(enough).slots_bytes, 0u);
  EXPECT_FALSE(plan_of(enough).stores.pinned);
}

// Of a layer with more query heads than it takes the device is sent what the host chose, while it
// fetches for the other.
TEST_F(DeviceSlotsTest, IsSentTheRowsAmongWhichItCannotChoose) {
  CacheOptions there = fetching(options_of("sketch", 1200));
  there.layers = {plain_layer(1, 9, 32, 32), plain_layer(2, 2, 32, 32)};
  const CacheOptions least = with_least(in_host_memory(there));
  const CachePlan plan = plan_of(least);
  EXPECT_GT(plan.fetch.bytes(), 0u);
  EXPECT_GT(plan.slots_bytes, 0u);
  EXPECT_EQ(plan.device_bytes(), least.tiers.device_bytes);
  Fed fed({there, least});
  fed.advance(1090, Pass::prefill);
  const CacheReport sealed[] = {fed.caches[0]->report(), fed.caches[1]->report()};
  for (const std::uint32_t rows : {1u, 2u}) {
    const auto out = fed.advance(rows, Pass::decode);
    EXPECT_TRUE(same_bits(out[0], out[1])) << "rows " << rows;
  }
  const CacheReport home = difference(fed.caches[0]->report(), sealed[0]);
  const CacheReport moved = difference(fed.caches[1]->report(), sealed[1]);
  EXPECT_GT(moved.row_cache_hits, 0u);
  EXPECT_EQ(moved.device_bytes_read + moved.device_bytes_fetched, home.device_bytes_read);
  EXPECT_EQ(moved.rows_read, home.rows_read);
}

// What came of a step that was refused is not asked: its slots are empty to the next one.
TEST_F(DeviceSlotsTest, ARefusedStepLeavesNoCopies) {
  CacheOptions options = in_host_memory(options_of("sketch", 1200));
  options.layers = {plain_layer(1, 2, 32, 32)};
  options.course = Course{{}, {900}};  // read at once: of fewer segments than come here
  auto made = KvCache::create(options, 2, test::float_isa());
  ASSERT_TRUE(made) << made.error().message;
  KvCache& cache = **made;
  Timeline text = std::move(*cache.start());
  ASSERT_TRUE(advance(&cache, text, 300, Pass::prefill));
  attempt(&cache, text, 1);
  attempt(&cache, text, 1);
  EXPECT_EQ(cache.report().row_cache_misses, 64u);
  for (int i = 0; i < 12; ++i) ASSERT_TRUE(advance(&cache, text, 64, Pass::prefill));
  EXPECT_THROW(attempt(&cache, text, 1), std::runtime_error);
  cache.rollback();
  Fed::check(text.truncate(300));
  attempt(&cache, text, 1);
  EXPECT_EQ(cache.report().row_cache_misses, 128u);
  attempt(&cache, text, 1);
  EXPECT_EQ(cache.report().row_cache_misses, 128u);
}

// Where the host's memory cannot be pinned, or the device's taken, that is said.
TEST_F(DeviceSlotsTest, MemoryThatIsNotThereIsRefused) {
  StoreOptions options;
  options.device = kDevice;
  options.pinned = true;
  auto stores = open_stores(options);
  ASSERT_TRUE(stores) << stores.error().message;
  Store& host = *(*stores)[static_cast<std::size_t>(Tier::host)];
  EXPECT_EQ(host.name(), "pinned host memory");
  EXPECT_EQ(host.facts().reach, Reach::memory);
  const auto space = host.take(4096);
  ASSERT_TRUE(space) << space.error().message;
  space->address[4095] = std::byte{1};  // the host reaches it
  host.give(*space);
  const auto refused = host.take(std::uint64_t{1} << 60);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::exhausted);
  EXPECT_NE(refused.error().message.find("of host memory to pin"), std::string::npos)
      << refused.error().message;
}

// On a disk there is no address to fetch from: the host chooses in all layers, also in those that
// fit on the device, lest answers depend on which those are.
TEST_F(DeviceSlotsTest, TheHostChoosesWhereRowsMayBeOnADisk) {
  CacheOptions spilled = fetching(options_of("sketch", 1200));
  spilled.tiers.disk_bytes = std::uint64_t{256} << 20;
  spilled.tiers.directory = ::testing::TempDir();
  const CachePlan plan = plan_of(spilled);
  EXPECT_EQ(plan.device_index_bytes + plan.slots_bytes, 0u);
  EXPECT_GT(plan.home_bytes(Tier::device), 0u);
  // But not where a disk that is there has none.
  spilled.method_overrides.push_back("place.rows=host");
  EXPECT_GT(plan_of(spilled).slots_bytes, 0u);
}

}  // namespace
}  // namespace thermocline
