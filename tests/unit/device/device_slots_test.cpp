// Caches whose rows are at home in host memory, or on a disk, and chosen by a device, which fetches
// those that no slot of it holds, or is sent them: the bits of a cache whose rows are all at home
// there, for any number of slots, and no more rows moved than were missing.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/buffer.h"
#include "runtime/cache_plan.h"
#include "runtime/kv_cache.h"
#include "runtime/method.h"
#include "runtime/observer.h"
#include "tests/support/temporary_folder.h"
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

enum class Home : std::uint8_t { memory, disk };

class DeviceSlotsTest : public OnAGpu, public testing::WithParamInterface<Home> {
 protected:
  static bool on_disk() { return GetParam() == Home::disk; }
  // No row is at home on the device; nor, on a disk, has any a copy in host memory, but where there
  // is room for `cached` bytes of them.
  CacheOptions elsewhere(CacheOptions options, std::uint64_t cached = 0) const {
    options = fetching(std::move(options));
    if (on_disk()) return thermocline::on_disk(std::move(options), folder_.path(), cached);
    options.method_overrides.push_back("place.rows=host");
    return options;
  }
  // Those are there that have room.
  CacheOptions spilling(CacheOptions options) const {
    options = fetching(std::move(options));
    if (on_disk()) {
      options.tiers.directory = folder_.path();
      options.tiers.disk_bytes = std::uint64_t{256} << 20;
    }
    return options;
  }
  const test::TemporaryFolder folder_{"device-slots"};
};

TEST_P(DeviceSlotsTest, AnswersAreThoseOfRowsAtHomeThere) {
  for (const auto& [method, overrides] : methods_that_a_device_chooses_by()) {
    SCOPED_TRACE(method + (overrides.empty() ? "" : ", " + overrides[0]));
    const CacheOptions there = options_of(method, 1200, overrides);
    Fed fed({there, with_least(elsewhere(there))});
    CacheOptions wide = there;  // whose launches take more, and slots less
    wide.max_positions = 2400;
    wide.max_timelines = 8;
    fed.add(elsewhere(wide, 100 << 10), 4);
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
      EXPECT_EQ(moved.device_bytes_read + moved.device_bytes_fetched,
                home.device_bytes_read - home.device_bytes_copied);  // which were joined
      // Of any row once, where it lay, of those on a disk whole pages; or a copy above it.
      EXPECT_EQ(moved.disk_bytes_read > 0, on_disk());
      if (!on_disk()) {
        EXPECT_EQ(moved.device_bytes_read + moved.host_bytes_read,
                  home.device_bytes_read + home.host_bytes_read);
      } else if (c == 1) {
        EXPECT_EQ(moved.host_bytes_read, home.host_bytes_read);
      }
      // What is chosen by was written there, and no rows.
      EXPECT_LT(fed.caches[c]->report().device_bytes_written,
                fed.caches[0]->report().device_bytes_written);
    }
  }
}

// Of each list's choice what no slot holds: with slots for one choice, what the last one had not;
// with slots for all rows, what none had.
TEST_P(DeviceSlotsTest, FetchesWhatNoSlotHolds) {
  CacheOptions three = options_of("sketch", 1200);
  three.layers.push_back(plain_layer(1, 8, 128, 80));
  const CacheOptions ample = elsewhere(three);
  const CacheOptions least = with_least(ample);
  const Method method = method_of(ample);
  ASSERT_EQ(plan_of(least).slots.of_head, 64u);  // select.min_rows
  ASSERT_EQ(plan_of(ample).slots.of_head, plan_of(ample).slots.rows);
  // On a disk, also with room above it for copies of all rows.
  Fed fed({least, ample, elsewhere(three, std::uint64_t{16} << 20)});
  for (const std::uint32_t rows : {700u, 390u}) fed.advance(rows, Pass::prefill);
  Noted noted;
  fed.caches[0]->observe(&noted);
  using Rows = std::set<std::uint32_t>;
  std::map<std::pair<std::uint32_t, std::uint32_t>, Rows> last, all;  // by layer and head
  std::size_t hits = 0;
  for (const std::uint32_t rows : {1u, 1u, 2u, 1u, 4u, 1u}) {
    const std::uint32_t sealed_to = method.tail_begin(fed.texts[0].length());
    std::vector<CacheReport> before;
    for (const auto& cache : fed.caches) before.push_back(cache->report());
    noted.lists.clear();
    const auto out = fed.advance(rows, Pass::decode);
    EXPECT_TRUE(same_bits(out[0], out[1]));
    EXPECT_TRUE(same_bits(out[0], out[2]));
    std::uint64_t missed[2] = {}, bytes[2] = {}, chosen = 0, all_bytes = 0;
    for (const Noted::List& list : noted.lists) {
      const LayerSpec& spec = ample.layers[list.layer];
      const Rows read(list.positions.lower_bound(method.sink),
                      list.positions.lower_bound(sealed_to));
      ASSERT_EQ(read.size(), 64u);
      chosen += read.size();
      all_bytes += read.size() * 2 * (spec.key_dim + spec.value_dim);
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
      EXPECT_EQ(moved.device_bytes_read + moved.device_bytes_fetched, all_bytes);
      hits += moved.row_cache_hits;
      // Of every page that one lies in, and of pages between.
      EXPECT_EQ(moved.disk_bytes_read > 0, on_disk() && missed[c] > 0);
      EXPECT_EQ(moved.pages_verified > 0, on_disk() && missed[c] > 0);
      EXPECT_LE(moved.pages_verified * kPageBytes, moved.disk_bytes_read);
    }
    EXPECT_LE(missed[1], missed[0]);
    if (on_disk()) {
      const CacheReport above = difference(fed.caches[2]->report(), before[2]);
      EXPECT_EQ(above.device_bytes_fetched, bytes[1]);
      EXPECT_EQ(above.row_cache_hits, chosen);
      EXPECT_EQ(above.row_cache_misses + above.disk_bytes_read, 0u);
    }
  }
  EXPECT_GT(hits, 0u);
}

// Of keys at low rank nothing is fetched: values cross, and what keys are rebuilt from is read
// there as often as it is where all rows are at home.
TEST_P(DeviceSlotsTest, FetchesValuesWhereKeysAreRebuilt) {
  const CacheOptions there = options_of("shadowkv", 1200);
  Fed fed({there, elsewhere(there)});
  fed.advance(1150, Pass::prefill);
  Noted noted;
  fed.caches[1]->observe(&noted);
  const Method method = method_of(there);
  const std::uint32_t sealed_to = method.tail_begin(fed.texts[0].length());
  std::vector<CacheReport> before;
  for (const auto& cache : fed.caches) before.push_back(cache->report());
  fed.advance(1, Pass::decode);
  std::vector<std::uint32_t> ranks;
  for (const RankReport& of : fed.caches[1]->ranks(fed.texts[1])) ranks.push_back(of.rank);
  ASSERT_EQ(ranks.size(), there.layers.size());
  std::uint64_t values = 0, rebuilt = 0;
  for (const Noted::List& list : noted.lists) {
    const LayerSpec& spec = there.layers[list.layer];
    const auto read = static_cast<std::uint64_t>(std::distance(
        list.positions.lower_bound(method.sink), list.positions.lower_bound(sealed_to)));
    EXPECT_EQ(read, 64u);  // select.min_rows: eight chunks
    values += read * 2 * spec.value_dim;
    // One segment has all of them; no chunk of so few is an outlier.
    rebuilt += (read + spec.key_dim) * ranks[list.layer] * sizeof(f16);
  }
  const CacheReport home = difference(fed.caches[0]->report(), before[0]);
  const CacheReport moved = difference(fed.caches[1]->report(), before[1]);
  EXPECT_EQ(home.device_bytes_read, values + rebuilt);
  EXPECT_EQ(home.device_bytes_fetched, 0u);
  EXPECT_EQ(moved.device_bytes_fetched, values);
  EXPECT_EQ(moved.device_bytes_read, rebuilt);
}

// Rows that steps leave and join, texts that are forked, cut and read on, steps that are given up:
// a copy is never another row's.
TEST_P(DeviceSlotsTest, SlotsFollowTheirRows) {
  CacheOptions there = options_of("sketch", 600, {"steady.join=4", "select.min_rows=40"});
  there.max_timelines = 2;
  Fed fed({there, elsewhere(there)});  // which has a slot for every row
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
  EXPECT_EQ(held(cache, "host", "rows") + held(cache, "disk", "rows"), 0u);
}

// Two timelines in one step have their own slots, and a fork begins with what its origin fetched.
TEST_P(DeviceSlotsTest, TimelinesHaveSlotsOfTheirOwn) {
  CacheOptions options = options_of("ladder2", 1200);
  options.max_timelines = 3;
  options = elsewhere(options);
  auto made = KvCache::create(options, 2, test::float_isa());
  ASSERT_TRUE(made) << made.error().message;
  KvCache& cache = **made;
  std::vector<Timeline> texts;
  for (const std::uint32_t length : {700u, 320u}) {
    texts.push_back(std::move(*cache.start()));
    ASSERT_TRUE(advance(&cache, texts.back(), length, Pass::prefill, length));
  }
  const auto fetched_by = [&](std::uint32_t text) {
    const std::uint64_t before = cache.report().device_bytes_fetched;
    attempt(&cache, texts[text], 1);
    return cache.report().device_bytes_fetched - before;
  };
  const std::uint64_t first = fetched_by(0), second = fetched_by(1);
  EXPECT_GT(first, 0u);
  EXPECT_GT(second, 0u);
  for (const std::uint32_t again : {0u, 1u}) EXPECT_EQ(fetched_by(again), 0u);
  texts.push_back(std::move(*texts[0].fork()));
  for (const std::uint32_t again : {2u, 0u, 1u, 2u}) EXPECT_EQ(fetched_by(again), 0u);
  // And which has fetched nothing yet has nothing to give.
  texts[1] = std::move(*cache.start());
  ASSERT_TRUE(advance(&cache, texts[1], 320, Pass::prefill, 320));
  texts[2] = std::move(*texts[1].fork());
  EXPECT_EQ(fetched_by(2), second);
}

// As much is taken as was planned, in each tier, and one byte less than the least is refused.
TEST_P(DeviceSlotsTest, TakesWhatIsPlanned) {
  constexpr std::uint32_t kRead = 335, kLength = 403;  // where the tail is longest, a seal later
  CacheOptions options = options_of("ladder2", kLength);
  options.course = Course{{}, {kRead}};
  options = with_least(elsewhere(options));
  const auto plan = KvCache::plan(options);
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_TRUE(plan->notes.empty());
  EXPECT_EQ(plan->total("device"), options.tiers.device_bytes);
  EXPECT_EQ(peak_of(*plan, "device", "rows") + peak_of(*plan, "host", "index"), 0u);
  // For rows on a disk to be packed in: all that a step reads, of so few.
  const CachePlan lines = plan_of(options);
  EXPECT_EQ(lines.choice.outbox,
            on_disk() ? 2 * lines.slots.of_head * lines.layers[0].sealed.bytes() : 0u);
  EXPECT_EQ(lines.pinned_bytes(), lines.choice.host + lines.choice.outbox + lines.prefill.host);
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
  expect_planned(on_disk() ? "disk" : "host", "rows");
  for (const char* what : {"staging", "tail", "tables"}) expect_planned("host", what);
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
  EXPECT_EQ(plan_of(elsewhere(options_of("ladder2", kLength))).stores.pinned, !on_disk());
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
TEST_P(DeviceSlotsTest, AnswersAreTheSameWhicheverLayersFit) {
  CacheOptions there = options_of("sketch", 2000);
  there.layers.assign(6, plain_layer(2, 2, 32, 32));
  const auto home = KvCache::plan(there);
  ASSERT_TRUE(home) << home.error().message;
  const std::uint64_t prefill = plan_of(there).prefill.device;  // whichever fit
  Fed fed({there});
  std::set<std::size_t> whole;
  for (const int sixths : {5, 4, 3}) {
    CacheOptions some = spilling(there);
    some.tiers.device_bytes =
        prefill + (home->total("device") - prefill) * static_cast<std::uint64_t>(sixths) / 6;
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
    EXPECT_GT(some.device_bytes_fetched, all.device_bytes_fetched);  // which a prefill's rows are
    EXPECT_EQ(some.disk_bytes_read > 0, on_disk());
    EXPECT_EQ(some.device_bytes_read + some.device_bytes_fetched,
              all.device_bytes_read + all.device_bytes_fetched);
  }
  // All of them fit: nothing is fetched, and there are no slots.
  CacheOptions enough = spilling(there);
  enough.tiers.device_bytes = home->total("device");
  EXPECT_EQ(plan_of(enough).slots_bytes, 0u);
  EXPECT_EQ(plan_of(enough).choice.outbox, 0u);
  EXPECT_FALSE(plan_of(enough).stores.pinned);
}

// Of a layer with more query heads than it takes the device is sent what the host chose, while it
// fetches for the other.
TEST_P(DeviceSlotsTest, IsSentTheRowsAmongWhichItCannotChoose) {
  CacheOptions there = fetching(options_of("sketch", 1200));
  there.layers = {plain_layer(1, 9, 32, 32), plain_layer(2, 2, 32, 32)};
  const CacheOptions least = with_least(elsewhere(there));
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
TEST_P(DeviceSlotsTest, ARefusedStepLeavesNoCopies) {
  CacheOptions options = options_of("sketch", 1200);
  options.layers = {plain_layer(1, 2, 32, 32)};
  options.course = Course{{}, {900}};  // read at once: of fewer segments than come here
  options = elsewhere(options);
  auto made = KvCache::create(options, 2, test::float_isa());
  ASSERT_TRUE(made) << made.error().message;
  KvCache& cache = **made;
  Timeline text = std::move(*cache.start());
  ASSERT_TRUE(advance(&cache, text, 300, Pass::prefill));
  constexpr std::uint64_t kOfStep = 64 * 2 * (32 + 32);
  std::uint64_t before = cache.report().device_bytes_fetched;
  const auto fetched = [&] { return cache.report().device_bytes_fetched - before; };
  attempt(&cache, text, 1);
  attempt(&cache, text, 1);
  EXPECT_EQ(fetched(), kOfStep);
  for (int i = 0; i < 12; ++i) ASSERT_TRUE(advance(&cache, text, 64, Pass::prefill));
  before = cache.report().device_bytes_fetched;
  EXPECT_THROW(attempt(&cache, text, 1), std::runtime_error);
  cache.rollback();
  Fed::check(text.truncate(300));
  attempt(&cache, text, 1);
  EXPECT_EQ(fetched(), kOfStep);
  attempt(&cache, text, 1);
  EXPECT_EQ(fetched(), kOfStep);
}

// More rows than are packed at a time, in memory that is written to again meanwhile.
TEST_P(DeviceSlotsTest, RowsComeInSeveralRoundsWhereTheyAreMany) {
  CacheOptions there = options_of("sketch", 1600, {"select.min_rows=5000"});  // all are read
  there.layers = {plain_layer(8, 1, 128, 128)};
  const CacheOptions least = with_least(elsewhere(there));
  Fed fed({there, least});
  fed.advance(1590, Pass::prefill);
  const CacheReport sealed = fed.caches[1]->report();
  for (const std::uint32_t rows : {1u, 2u}) {
    const auto out = fed.advance(rows, Pass::decode);
    EXPECT_TRUE(same_bits(out[0], out[1])) << "rows " << rows;
  }
  const CacheReport moved = difference(fed.caches[1]->report(), sealed);
  const std::uint64_t outbox = plan_of(least).choice.outbox;
  EXPECT_EQ(outbox > 0, on_disk());
  EXPECT_GT(moved.device_bytes_fetched, outbox + outbox / 4);
}

class DiskSlotsTest : public OnAGpu {
 protected:
  const test::TemporaryFolder folder_{"device-slots"};
};

// What the disk gives back damaged, or not at all, ends the step in one line. Rows that came before
// are in slots then, which hold nothing for the step that is done again.
TEST_F(DiskSlotsTest, AFailedReadLeavesNoCopies) {
  CacheOptions there = options_of("sketch", 1600, {"select.min_rows=5000"});  // all are read
  there.layers = {plain_layer(8, 1, 128, 128)};
  Fed fed({on_disk(fetching(there), folder_.path(), 0), there});
  fed.advance(1590, Pass::prefill);
  const std::uint32_t length = fed.texts[0].length();
  const auto expect_refused = [&](const std::string& what) {
    try {
      fed.advance(1, Pass::decode);
      FAIL() << "rows that are not there were attended";
    } catch (const std::runtime_error& refused) {
      EXPECT_NE(std::string(refused.what()).find(what), std::string::npos) << refused.what();
      EXPECT_EQ(std::string(refused.what()).find('\n'), std::string::npos) << refused.what();
    }
    fed.caches[0]->rollback();
    EXPECT_EQ(fed.texts[0].length(), length);
  };

  const int file = open_rows_in(folder_.path());
  ASSERT_GE(file, 0);
  // In the last head: as much as is sent at a time comes before.
  constexpr off_t kAt = 7 * 1536 * 512 + (1 << 19);
  const off_t end = ::lseek(file, 0, SEEK_END);
  ASSERT_GT(end, kAt);
  std::vector<char> right(static_cast<std::size_t>(end - kAt));
  ASSERT_EQ(::pread(file, right.data(), right.size(), kAt), end - kAt);
  const auto write = [&](const std::vector<char>& bytes) {
    return ::pwrite(file, bytes.data(), bytes.size(), kAt) == static_cast<ssize_t>(bytes.size()) &&
           ::fsync(file) == 0;
  };
  ASSERT_TRUE(write(std::vector<char>(4096, 'x')));
  expect_refused("damaged data");
  ASSERT_TRUE(write(right));
  ASSERT_EQ(::ftruncate(file, kAt), 0);
  expect_refused("failed twice");
  ASSERT_TRUE(write(right));
  ::close(file);

  const CacheReport before = fed.caches[0]->report();
  const auto out = fed.advance(1, Pass::decode);
  EXPECT_TRUE(same_bits(out[0], out[1]));
  const CacheReport moved = difference(fed.caches[0]->report(), before);
  EXPECT_EQ(moved.row_cache_hits, 0u);
  EXPECT_EQ(moved.device_bytes_fetched, fed.caches[1]->report().device_bytes_read);
}

class PinnedMemoryTest : public OnAGpu {};

// Where the host's memory cannot be pinned, or the device's taken, that is said.
TEST_F(PinnedMemoryTest, ThatIsNotThereIsRefused) {
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

INSTANTIATE_TEST_SUITE_P(Each, DeviceSlotsTest, testing::Values(Home::memory, Home::disk),
                         [](const auto& home) {
                           return std::string(home.param == Home::disk ? "disk" : "memory");
                         });

}  // namespace
}  // namespace thermocline
