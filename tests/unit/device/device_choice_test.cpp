// Caches among whose rows a device chooses: what it reads and answers against a cache of the host's
// that was fed the same, against itself with other budgets, and what crosses meanwhile.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <iterator>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/device.h"
#include "runtime/kv_cache.h"
#include "runtime/method.h"
#include "runtime/observer.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/written_rows.h"
#include "tests/unit/device/each_device.h"
#include "tests/unit/device/fed_caches.h"

namespace thermocline {
namespace {

constexpr char kDevice[] = "cuda";

// Layers that all seal, so that each of them is chosen in.
CacheOptions options_of(const std::string& method, std::uint32_t positions,
                        std::vector<std::string> overrides = {}) {
  CacheOptions options = options_for(method, positions);
  options.layers = {plain_layer(2, 3, 64, 64), plain_layer(2, 2, 32, 32)};
  options.method_overrides = std::move(overrides);
  return options;
}

CacheOptions there(const CacheOptions& options) { return on_device(options, kDevice); }

// Which rows every list of a step read, and attended by their codes.
class Noted final : public AttendObserver {
 public:
  void attended(const AttendedList& list) override {
    lists.emplace_back(list.positions.begin(), list.positions.end());
    coded.emplace_back(list.coded.begin(), list.coded.end());
  }
  std::vector<std::vector<std::uint32_t>> lists, coded;
};

class DeviceChoiceTest : public OnAGpu {};

// A cache of the host's and one of the device's, fed the same, step by step.
//
// What two processors weigh a little differently they may rank differently: then a row of a list is
// another one, whose mass was the same but for rounding, and nothing is said of that list's answer.
// That may happen now and then, to one row; or to one unit, which may not be as large as the other,
// so that the room which is left goes to yet others.
class Pair {
 public:
  explicit Pair(const CacheOptions& options) : Pair(options, options) {}
  Pair(const CacheOptions& options, const CacheOptions& of_device)
      : fed({options, there(of_device)}),
        codes_(options.method.starts_with("ladder")),
        most_swapped_(codes_ || options.method.starts_with("sketch") ? 1 : 64) {
    for (const std::size_t c : {0, 1}) fed.caches[c]->observe(&noted_[c]);
  }
  ~Pair() { EXPECT_LE(20 * swapped_, compared_); }

  void step(std::uint32_t rows) {
    for (Noted& one : noted_) one.lists.clear(), one.coded.clear();
    const auto out = fed.advance(rows, Pass::decode);
    ASSERT_EQ(noted_[0].lists.size(), noted_[1].lists.size());
    std::size_t list = 0, at = 0;
    for (const LayerSpec& layer : fed.caches[0]->layers())
      for (std::uint32_t i = 0; i < rows * layer.kv_heads; ++i, ++list) {
        const std::size_t floats = std::size_t{layer.q_heads / layer.kv_heads} * layer.value_dim;
        std::vector<std::uint32_t> other;
        std::ranges::set_symmetric_difference(noted_[0].lists[list], noted_[1].lists[list],
                                              std::back_inserter(other));
        EXPECT_LE(other.size(), 2 * most_swapped_);
        coded_ += noted_[1].coded[list].size();
        std::ranges::set_symmetric_difference(noted_[0].coded[list], noted_[1].coded[list],
                                              std::back_inserter(other));
        EXPECT_LE(other.size(), 6 * most_swapped_);  // one more swap, and the first one's rows
        ++(other.empty() ? compared_ : swapped_);
        for (std::size_t f = at; other.empty() && f < at + floats; ++f)
          ASSERT_NEAR(out[0][f], out[1][f], bound());
        at += floats;
      }
  }

  // Rows that lists of the device's cache attended by their codes.
  std::size_t coded() const { return coded_; }
  // Whether the two read as many rows: what was swapped for a unit may have fewer.
  bool reads_as_many() const { return most_swapped_ == 1 || swapped_ == 0; }

  Fed fed;

 private:
  // Where rows are attended by codes the host's kernels may take a weight to be off by so much of
  // itself (kernels/sketch.h): then an answer is off by as much of the values, a mean's and a
  // residual's, on either side of the fraction that it is.
  double bound() const { return fed.bound() + (codes_ ? 2 * 1.1e-4 * 2 * fed.largest_value() : 0); }

  bool codes_;
  std::size_t most_swapped_;
  Noted noted_[2];
  std::size_t compared_ = 0, swapped_ = 0, coded_ = 0;
};

// A cluster whose weight is at the bound may be left out by one of the two.
bool close(std::uint64_t one, std::uint64_t other) {
  return std::max(one, other) - std::min(one, other) <= std::max(one, other) / 50;
}

TEST_F(DeviceChoiceTest, ReadsAndAnswersWhatTheHostDoes) {
  for (const auto& [method, overrides] : methods_that_a_device_chooses_by()) {
    SCOPED_TRACE(method + (overrides.empty() ? "" : ", " + overrides[0]));
    CacheOptions options = options_of(method, 1200, overrides);
    options.method_overrides.push_back("steady.join=1");  // never
    Pair pair(options);
    for (const std::uint32_t rows : {500u, 300u, 290u}) {  // a segment each, not in whole clusters
      const auto read = pair.fed.advance(rows, Pass::prefill);
      EXPECT_LE(farthest(read[0], read[1]), pair.fed.prefill_bound());
    }
    const CacheReport sealed[] = {pair.fed.caches[0]->report(), pair.fed.caches[1]->report()};
    for (int step = 0; step < 5; ++step) pair.step(1 + static_cast<std::uint32_t>(step % 2));
    const CacheReport here = difference(pair.fed.caches[0]->report(), sealed[0]);
    const CacheReport on = difference(pair.fed.caches[1]->report(), sealed[1]);
    if (pair.reads_as_many()) {
      EXPECT_EQ(on.rows_read, here.rows_read);
      EXPECT_EQ(on.host_bytes_read + on.device_bytes_read, here.host_bytes_read);
    }
    EXPECT_TRUE(close(on.rows_read, here.rows_read));
    EXPECT_EQ(on.codes_read, here.codes_read);
    EXPECT_EQ(on.codes_read > 0, method.starts_with("ladder"));
    EXPECT_EQ(pair.coded(), on.codes_read);
    EXPECT_TRUE(close(on.summaries_read, here.summaries_read))
        << on.summaries_read << " and " << here.summaries_read;
    // Where all rows are read the host looks at nothing first.
    EXPECT_TRUE(here.index_bytes_read == 0 || close(on.index_bytes_read, here.index_bytes_read))
        << on.index_bytes_read << " and " << here.index_bytes_read;
    EXPECT_EQ(on.device_bytes_copied + on.device_bytes_fetched, 0u);
    EXPECT_GT(on.device_bytes_exchanged, 0u);
    EXPECT_EQ(on.select_ms, 0.0);  // nobody here chose
  }
}

// Of a text of which the host looks at a part a device looks at all: the host's without bounds.
TEST_F(DeviceChoiceTest, LooksAtAllOfAnyText) {
  CacheOptions device = options_of("sketch2", 4000), all = device;
  device.layers = all.layers = {plain_layer(1, 2, 32, 32)};
  all.method_overrides = {"select.least_candidates=100000"};
  Pair pair(all, device);
  pair.fed.advance(3900, Pass::prefill);
  for (int step = 0; step < 3; ++step) pair.step(4);
}

// Whatever is in the folder of methods is attended there, by whoever chooses, or refused.
TEST_F(DeviceChoiceTest, EveryMethodIsNearTheHostsOrRefused) {
  for (const std::string& method : method_names("configs/methods")) {
    SCOPED_TRACE(method);
    const CacheOptions host = options_of(method, 700);
    const auto plan = KvCache::plan(there(host));
    if (!plan) {
      EXPECT_TRUE(plan.error().code == ErrorCode::unsupported ||
                  plan.error().code == ErrorCode::invalid_argument)
          << plan.error().message;
      continue;
    }
    Pair pair(host);
    pair.fed.advance(600, Pass::prefill);
    for (int step = 0; step < 2; ++step) pair.step(1);
    const bool chosen = std::ranges::any_of(plan->lines, [](const MemoryLine& line) {
      return line.tier == "device" && line.purpose == "index";
    });
    const std::set<std::string> by_units = {"moments",  "quest",         "retroinfer",
                                            "shadowkv", "shadowkv_int8", "shadowkv_landmarks"};
    EXPECT_EQ(chosen, method.starts_with("sketch") || method.starts_with("ladder") ||
                          by_units.contains(method));
  }
}

// A list has the same bits whatever is chosen with it, in however many parts a step is asked, on
// however many threads, in whichever memory was planned for.
TEST_F(DeviceChoiceTest, BitsDependOnNoBudget) {
  for (const char* method : {"sketch", "ladder2", "quest", "retroinfer", "shadowkv"}) {
    SCOPED_TRACE(method);
    const CacheOptions narrow = there(options_of(method, 1200));
    CacheOptions wide = there(options_of(method, 2400));
    wide.max_timelines = 8;
    wide.tiers.device_bytes = std::uint64_t{256} << 20;
    Fed fed({narrow, wide});
    fed.add(narrow, 4);
    for (const std::uint32_t rows : {500u, 290u}) fed.advance(rows, Pass::prefill);
    for (const std::uint32_t rows : {1u, 8u, 3u}) {
      const auto out = fed.advance(rows, Pass::decode);
      EXPECT_TRUE(same_bits(out[0], out[1]));
      EXPECT_TRUE(same_bits(out[0], out[2]));
    }
    EXPECT_EQ(fed.caches[0]->report().summaries_read, fed.caches[1]->report().summaries_read);
  }
}

// Timelines of other lengths and numbers of segments, one of them with none, in one step.
TEST_F(DeviceChoiceTest, TimelinesOfOneStepHaveTheBitsThatTheyHaveAlone) {
  CacheOptions options = there(options_of("ladder2", 1200));
  options.max_timelines = 4;
  auto made = KvCache::create(options, 2, test::float_isa());
  ASSERT_TRUE(made) << made.error().message;
  KvCache& cache = **made;
  std::vector<Timeline> texts;
  for (const std::uint32_t length : {40u, 700u, 320u}) {
    texts.push_back(std::move(*cache.start()));
    ASSERT_TRUE(advance(&cache, texts.back(), length, Pass::prefill, length));
  }
  // As if they were one text's next row each: what a layer gives, by row.
  const auto step = [&](const std::vector<const Timeline*>& of) {
    std::vector<Token> rows;
    for (const Timeline* text : of) rows.push_back({text->id(), text->length()});
    Fed::check(cache.begin(rows, Pass::decode));
    std::vector<std::vector<float>> out(of.size());
    for (std::uint32_t l = 0; l < options.layers.size(); ++l) {
      const LayerSpec& spec = options.layers[l];
      const auto filled = [&](std::size_t cols) {
        std::vector<float> values(of.size() * cols);
        for (std::size_t r = 0; r < of.size(); ++r)
          for (std::size_t i = 0; i < cols; ++i)
            values[r * cols + i] = std::sin(static_cast<float>(rows[r].position + 3 * i));
        return values;
      };
      const std::size_t n = of.size();
      const auto k = filled(std::size_t{spec.kv_heads} * spec.key_dim);
      const auto v = filled(std::size_t{spec.kv_heads} * spec.value_dim);
      const auto q = filled(std::size_t{spec.q_heads} * spec.key_dim);
      std::vector<float> gave(n * spec.q_heads * spec.value_dim);
      Fed::check(
          cache.append(LayerId{l}, {k.data(), n, k.size() / n}, {v.data(), n, v.size() / n}));
      Fed::check(
          cache.attend(LayerId{l}, {q.data(), n, q.size() / n}, {gave.data(), n, gave.size() / n}));
      for (std::size_t r = 0; r < n; ++r)
        out[r].insert(out[r].end(), gave.begin() + r * (gave.size() / n),
                      gave.begin() + (r + 1) * (gave.size() / n));
    }
    cache.rollback();
    return out;
  };
  const auto together = step({&texts[0], &texts[1], &texts[2]});
  for (std::size_t i = 0; i < texts.size(); ++i)
    EXPECT_TRUE(same_bits(step({&texts[i]})[0], together[i])) << "text " << i;
}

// What crosses in a step is what is asked and a state a list: not more where more rows are chosen.
TEST_F(DeviceChoiceTest, NeitherRowsNorListsOfThemCross) {
  const auto crossed = [](const std::string& share, std::uint64_t* rows_read) {
    Fed fed({there(options_of("sketch", 1200, {"select.share=" + share}))});
    fed.advance(1090, Pass::prefill);
    const CacheReport sealed = fed.caches[0]->report();
    for (int step = 0; step < 3; ++step) fed.advance(1, Pass::decode);
    const CacheReport moved = difference(fed.caches[0]->report(), sealed);
    EXPECT_EQ(moved.device_bytes_copied + moved.device_bytes_fetched + moved.device_bytes_written,
              0u);
    *rows_read = moved.rows_read;
    return moved.device_bytes_exchanged;
  };
  std::uint64_t few = 0, many = 0;
  const std::uint64_t of_few = crossed("0.1", &few), of_many = crossed("0.5", &many);
  EXPECT_GT(many, 3 * few);
  EXPECT_EQ(of_few, of_many);
  // Three steps of 10 and 8 query heads of 64 and 32 channels, and what says where two segments
  // are: beside the rounding of its parts to 256 bytes.
  EXPECT_LT(of_few, std::uint64_t{3} * 2 * 16 * 1024);
}

// Sealed rows that steps leave, joined, forked and cut: what is chosen of has the life of the rows.
TEST_F(DeviceChoiceTest, IndexesLiveAsLongAsTheirRows) {
  for (const std::string method : {"sketch", "quest", "retroinfer", "shadowkv"}) {
    SCOPED_TRACE(method);
    CacheOptions options =
        options_of(method, 600, {"steady.recent=16", "steady.join=4", "select.min_rows=40"});
    const bool loses = method == "shadowkv";  // something of a key: such rows are not joined
    if (loses) options.method_overrides.push_back("steady.seal=64");
    options.max_timelines = 2;
    Pair pair(options);
    Fed& fed = pair.fed;
    fed.advance(460, Pass::prefill);
    for (int step = 0; step < 6; ++step) pair.step(16);
    EXPECT_EQ(fed.caches[1]->report().rows_joined > 0, !loses);
    EXPECT_EQ(fed.caches[1]->report().rows_joined, fed.caches[0]->report().rows_joined);
    std::vector<Timeline> forks;
    for (Timeline& text : fed.texts) {
      forks.push_back(std::move(*text.fork()));
      Fed::check(text.truncate(333));
    }
    pair.step(2);
    std::swap(fed.texts, forks);
    pair.step(2);
    const auto held = [&](std::size_t c) {
      std::uint64_t bytes = 0;
      for (const MemoryLine& line : fed.caches[c]->usage().lines)
        if (line.purpose == "index" || line.tier == "device") bytes += line.bytes;
      return bytes;
    };
    const std::uint64_t both = held(1);
    forks.clear();
    EXPECT_LT(held(1), both);
    for (Timeline& text : fed.texts) Fed::check(text.truncate(0));
    EXPECT_EQ(held(0), 0u);
    std::uint64_t staging = 0;
    for (const MemoryLine& line : fed.caches[1]->usage().lines)
      if (line.tier == "device" && line.purpose == "staging") staging = line.bytes;
    EXPECT_EQ(held(1), staging);
  }
}

// Keys before their rotary embedding are turned as their layer's are: by halves, by neighbours,
// some channels, none; also where they are kept times how large queries are.
TEST_F(DeviceChoiceTest, RebuildsKeysOfEveryEmbedding) {
  CacheOptions options =
      options_of("shadowkv", 1200, {"keys.rank=0.5", "keys.balance=queries", "select.share=0.2"});
  options.layers.assign(4, plain_layer(2, 2, 64, 32));
  for (LayerSpec& layer : options.layers) layer.query_powers.assign(64, 0);
  options.layers[0].query_powers = plain_layer(2, 2, 64, 32).query_powers;
  options.layers[1].rope.pairs = RopePairs::neighbours;
  options.layers[1].rope.magnitude = 1.25f;
  options.layers[2].rope.inverse_frequency.resize(20);
  options.layers[3].rope.inverse_frequency.clear();
  Pair pair(options);
  pair.fed.advance(1090, Pass::prefill);
  for (int step = 0; step < 3; ++step) pair.step(2);
}

// What keys are rebuilt from is in both memories, once in each, and planned.
TEST_F(DeviceChoiceTest, FitsAreInBothMemories) {
  for (const char* method : {"shadowkv", "sketch"}) {
    SCOPED_TRACE(method);
    CacheOptions options =
        there(options_of(method, 1000, {"keys.compress=lowrank", "steady.seal=64"}));
    options.course = Course{{}, {996}};  // sealed at once: no step seals another segment
    const auto plan = KvCache::plan(options);
    ASSERT_TRUE(plan) << plan.error().message;
    options.tiers.device_bytes = plan->total("device");
    Fed fed({options});
    fed.advance(996, Pass::prefill);
    for (int step = 0; step < 2; ++step) fed.advance(1, Pass::decode);
    const MemoryPlan usage = fed.caches[0]->usage();
    for (const char* tier : {"device", "host"}) {
      EXPECT_GT(peak_of(usage, tier, "index"), 0u) << tier;
      EXPECT_LE(peak_of(usage, tier, "index"), peak_of(*plan, tier, "index")) << tier;
      EXPECT_GE(20 * peak_of(usage, tier, "index"), 19 * peak_of(*plan, tier, "index")) << tier;
    }
    EXPECT_GT(peak_of(usage, "device", "index"), peak_of(usage, "host", "index"));
    std::uint64_t least = 0;  // coefficients of both layers, f16
    for (const RankReport& of : fed.caches[0]->ranks(fed.texts[0]))
      least += 900 * of.rank * sizeof(f16);
    EXPECT_GT(peak_of(usage, "host", "index"), least);
    EXPECT_LT(peak_of(usage, "host", "index"), 2 * least);
    const CacheReport report = fed.caches[0]->report();
    EXPECT_GE(report.device_bytes_written,
              peak_of(usage, "device", "index") + peak_of(usage, "device", "rows"));
    EXPECT_LT(report.device_bytes_written,
              peak_of(usage, "device", "index") + peak_of(usage, "device", "rows") + 1024);
  }
}

// As much is taken as was planned, in each tier; and what the device chooses by is not the host's.
TEST_F(DeviceChoiceTest, TakesWhatIsPlanned) {
  constexpr std::uint32_t kRead = 335, kLength = 403;  // where the tail is longest, a seal later
  CacheOptions options = there(options_of("ladder2", kLength));
  options.course = Course{{}, {kRead}};
  const auto plan = KvCache::plan(options);
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_TRUE(plan->notes.empty());
  options.tiers.device_bytes = plan->total("device");  // it is enough, and no byte less
  Fed fed({options});
  fed.advance(kRead, Pass::prefill);
  while (fed.texts[0].length() < kLength) fed.advance(1, Pass::decode);
  const MemoryPlan usage = fed.caches[0]->usage();
  for (const char* what : {"rows", "index", "staging"}) {
    EXPECT_GT(peak_of(*plan, "device", what), 0u) << what;
    EXPECT_LE(peak_of(usage, "device", what), peak_of(*plan, "device", what)) << what;
    EXPECT_GE(20 * peak_of(usage, "device", what), 19 * peak_of(*plan, "device", what)) << what;
  }
  EXPECT_EQ(peak_of(*plan, "host", "index") + peak_of(usage, "host", "index"), 0u);
  for (const char* what : {"sealing", "staging", "tail", "tables"}) {
    EXPECT_LE(peak_of(usage, "host", what), peak_of(*plan, "host", what)) << what;
    EXPECT_GE(20 * peak_of(usage, "host", what), 19 * peak_of(*plan, "host", what)) << what;
  }
  // And of what it is computed in: no state for each fold.
  const std::uint64_t workspace = peak_of(usage, "workspace", "attention");
  EXPECT_LE(workspace, peak_of(*plan, "workspace", "attention"));
  EXPECT_GE(20 * workspace, 19 * peak_of(*plan, "workspace", "attention"));
  options.tiers.device_bytes -= 1;
  const auto fewer = KvCache::plan(options);
  ASSERT_TRUE(fewer) << fewer.error().message;
  EXPECT_LT(peak_of(*fewer, "device", "rows"), peak_of(*plan, "device", "rows"));
  EXPECT_GT(peak_of(*fewer, "host", "index"), 0u);
  expect_the_least_is_said(options);
}

// Who chooses in a layer is said by its home: each has the bits of a cache that has all of them so.
TEST_F(DeviceChoiceTest, LayersThatDoNotFitAreTheHosts) {
  const CacheOptions host = options_of("ladder2", 1200);
  CacheOptions some = there(host);
  const auto all = KvCache::plan(some);
  ASSERT_TRUE(all) << all.error().message;
  some.tiers.device_bytes = all->total("device") - 1;
  Fed fed({host, there(host), some});
  for (const std::uint32_t rows : {500u, 300u}) fed.advance(rows, Pass::prefill);
  for (int step = 0; step < 3; ++step) {
    const auto out = fed.advance(1, Pass::decode);
    const std::size_t first =
        std::size_t{host.layers[0].q_heads} * host.layers[0].value_dim;  // floats of that layer
    ASSERT_FALSE(same_bits(out[0], out[1]));
    std::vector<float> wanted(out[1].begin(), out[1].begin() + static_cast<std::ptrdiff_t>(first));
    wanted.insert(wanted.end(), out[0].begin() + static_cast<std::ptrdiff_t>(first), out[0].end());
    EXPECT_TRUE(same_bits(out[2], wanted));
  }
}

// Whatever ends a prefill leaves no trace: the same text read afterwards has the same bits, and the
// ledger as much.
TEST_F(DeviceChoiceTest, APrefillThatIsStoppedLeavesNothing) {
  const CacheOptions options = there(options_of("ladder2", 1200));
  auto made = KvCache::create(options, 2, test::float_isa());
  ASSERT_TRUE(made) << made.error().message;
  KvCache& cache = **made;
  Timeline text = std::move(*cache.start());
  ASSERT_TRUE(advance(&cache, text, 300, Pass::prefill));
  const auto held = [&] {
    std::vector<std::uint64_t> bytes;
    for (const MemoryLine& line : cache.usage().lines)
      if (line.tier == "device") bytes.push_back(line.bytes);
    return bytes;
  };
  const auto before = held();
  for (int stops : {0, 1, 5, 9}) {
    const Token first{text.id(), text.length()};
    std::vector<Token> rows;
    for (std::uint32_t r = 0; r < 500; ++r) rows.push_back({first.timeline, first.position + r});
    Fed::check(cache.begin(rows, Pass::prefill));
    std::atomic<int> asked = 0;
    Status status;
    for (std::uint32_t l = 0; status && l < options.layers.size(); ++l) {
      const LayerSpec& spec = options.layers[l];
      const std::vector<float> k(rows.size() * spec.kv_heads * spec.key_dim, 0.5f);
      const std::vector<float> q(rows.size() * spec.q_heads * spec.key_dim, 0.5f);
      std::vector<float> out(rows.size() * spec.q_heads * spec.value_dim);
      const std::size_t n = rows.size();
      Fed::check(
          cache.append(LayerId{l}, {k.data(), n, k.size() / n}, {k.data(), n, k.size() / n}));
      status = cache.attend(LayerId{l}, {q.data(), n, q.size() / n},
                            {out.data(), n, out.size() / n}, [&] { return ++asked > stops; });
    }
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::cancelled);
    cache.rollback();
    EXPECT_EQ(held(), before);
  }
  auto again = KvCache::create(options, 2, test::float_isa());
  ASSERT_TRUE(again);
  Timeline other = std::move(*(*again)->start());
  ASSERT_TRUE(advance(again->get(), other, 300, Pass::prefill));
  for (const auto& [rows, pass] : {std::pair{400u, Pass::prefill}, {2u, Pass::decode}}) {
    const auto one = advance(&cache, text, rows, pass);
    const auto two = advance(again->get(), other, rows, pass);
    ASSERT_TRUE(one && two);
    EXPECT_TRUE(same_bits(*one, *two));
  }
}

// Memory that another program has taken meanwhile: wherever it ends, the step is refused and can be
// done again.
TEST_F(DeviceChoiceTest, ADeviceWithoutMemoryRefusesTheStep) {
  const CacheOptions options = there(options_of("ladder2", 1200));
  Fed fed({options, options});
  fed.advance(300, Pass::prefill);
  const std::uint32_t length = fed.texts[0].length();
  // Room for the rows of the first layer's segment and not for all that goes with them; for none.
  for (const std::uint64_t left : {std::uint64_t{200} << 10, std::uint64_t{1} << 10}) {
    std::vector<std::byte*> taken;
    for (std::uint64_t piece = std::uint64_t{1} << 37; piece >= 1024;) {
      const auto free = device_->free_bytes();
      ASSERT_TRUE(free);
      const std::uint64_t most = *free - std::min(*free, left);
      const Result<std::byte*> memory =
          device_->take(std::min(piece, most > 512 ? most - 512 : piece));
      if (memory && most > 512) {
        taken.push_back(*memory);
      } else {
        if (memory) device_->give(*memory);
        piece /= 2;
      }
    }
    Result<std::vector<float>> refused =
        advance(fed.caches[0].get(), fed.texts[0], 600, Pass::prefill);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::exhausted) << refused.error().message;
    fed.caches[0]->rollback();
    EXPECT_EQ(fed.texts[0].length(), length);
    for (std::byte* memory : taken) device_->give(memory);
  }
  for (const auto& [rows, pass] : {std::pair{600u, Pass::prefill}, {2u, Pass::decode}}) {
    const auto out = fed.advance(rows, pass);
    EXPECT_TRUE(same_bits(out[0], out[1]));
  }
}

// Where it cannot choose, it attends what the host chose, which a note says.
TEST_F(DeviceChoiceTest, TheHostChoosesWhereADeviceCannot) {
  CacheOptions host = options_of("sketch", 1200);
  host.layers = {plain_layer(1, 9, 32, 32)};
  const auto plan = KvCache::plan(there(host));
  ASSERT_TRUE(plan) << plan.error().message;
  ASSERT_EQ(plan->notes.size(), 1u);
  EXPECT_NE(plan->notes[0].find("the host chooses among rows that the device attends"),
            std::string::npos);
  EXPECT_NE(plan->notes[0].find("not 9"), std::string::npos) << plan->notes[0];
  // And of rows that are fetched: they are sent.
  host.method_overrides = {"place.run=fetch", "place.rows=host"};
  const auto sent = KvCache::plan(there(host));
  ASSERT_TRUE(sent) << sent.error().message;
  EXPECT_EQ(sent->notes, plan->notes);
  Fed fed({host, there(host)});
  fed.advance(1090, Pass::prefill);
  const auto out = fed.advance(1, Pass::decode);
  EXPECT_LE(farthest(out[0], out[1]), fed.bound());
  EXPECT_GT(fed.caches[1]->report().select_ms, 0.0);
  EXPECT_GT(fed.caches[1]->report().device_bytes_fetched, 0u);
}

// A session's rows are in its file, and at home nowhere else: nothing of one is on a device.
TEST_F(DeviceChoiceTest, SessionsAreRefused) {
  const test::TemporaryFolder folder("device-choice");
  CacheOptions options = there(options_of("sketch", 1200));
  options.session.path = folder.path() + "/s.tls";
  const auto plan = KvCache::plan(options);
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().code, ErrorCode::unsupported);
  EXPECT_NE(plan.error().message.find("leave --device and --kv-device out"), std::string::npos)
      << plan.error().message;
}

// More segments than a plan has are refused by whoever would choose among them.
TEST_F(DeviceChoiceTest, RefusesAListThatWasNotPlannedFor) {
  ChoiceFormat format;
  format.head = {2, 32, 32};
  format.summary_format = RowFormat::rotated4;
  const auto bytes = choice_bytes(format, {1, 64, 64, 16, 0}, 1);
  ASSERT_TRUE(bytes) << bytes.error().message;
  const auto choice = device_->open_choice(*bytes);
  ASSERT_TRUE(choice) << choice.error().message;
  const std::vector<IndexedRows> runs(40, {.rows = 640, .units = 40});
  const std::vector<AttnState> steady(2);
  const std::vector<float> query(2 * 32);
  const ChoiceQuestion list{runs, query.data(), steady, 16, 0};
  const auto refused = (*choice)->begin(format, {&list, 1});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::exhausted);
}

}  // namespace
}  // namespace thermocline
