// Short segments that steps have left and that become one: when, in which layer, and that a text is
// then what it would be if its rows had been sealed at once.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "runtime/joint.h"
#include "runtime/kv_cache.h"
#include "runtime/method.h"
#include "runtime/session.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/written_rows.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;
const std::string kMethods = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
constexpr std::uint32_t kSink = 4, kRecent = 16, kSeal = 64, kJoin = 4, kCell = kJoin * kSeal;
constexpr std::uint32_t kSteady = kSink + kRecent;
constexpr std::uint32_t kLayers = 3;  // that seal

class KvJoin : public ::testing::Test {
 protected:
  CacheOptions options(const std::string& method, const std::string& file = "") const {
    CacheOptions made;
    made.layers = {plain_layer(2, 3, 32, 48), plain_layer(1, 2, 64, 64),
                   plain_layer(2, 1, 32, 32, 100), plain_layer(1, 1, 48, 32)};
    made.method = method;
    made.method_directory = kMethods;
    made.method_overrides = {"steady.sink=4", "steady.recent=16", "steady.seal=64",
                             "steady.join=4"};
    made.max_positions = 1500;
    made.tiers.directory = folder_.path();
    if (!file.empty()) made.session.path = folder_.path() + "/" + file;
    return made;
  }
  static std::unique_ptr<KvCache> open(const CacheOptions& options) {
    auto cache = KvCache::create(options, 2, "auto");
    EXPECT_TRUE(cache) << cache.error().message;
    return std::move(*cache);
  }
  // As much in each tier as is planned, and no copies of rows.
  static std::unique_ptr<KvCache> open_with_nothing_to_spare(CacheOptions options) {
    const auto plan = KvCache::plan(options, 2);
    EXPECT_TRUE(plan) << plan.error().message;
    options.tiers.host_bytes = 0;
    for (const MemoryLine& line : plan->lines)
      if (line.tier == "host" && line.purpose != "row_cache")
        options.tiers.host_bytes += line.bytes;
    options.tiers.disk_bytes = plan->total("disk");
    return open(options);
  }
  static std::vector<float> go(KvCache* cache, const Timeline& timeline, std::uint32_t rows,
                               Pass pass) {
    std::vector<float> all;
    while (rows > 0) {
      const std::uint32_t some = pass == Pass::decode ? 1 : rows;
      const auto out = advance(cache, timeline, some, pass);
      EXPECT_TRUE(out) << out.error().message;
      if (!out) return all;
      all.insert(all.end(), out->begin(), out->end());
      rows -= some;
    }
    return all;
  }
  // What a session's file has of the timeline: the segments of all layers.
  std::uint64_t segments(KvCache* cache, const Timeline& timeline, const std::string& file) const {
    const Status saved = cache->save(timeline, session_text(timeline.length()));
    EXPECT_TRUE(saved) << saved.error().message;
    const auto held = read_session(folder_.path() + "/" + file);
    EXPECT_TRUE(held) << held.error().message;
    return held->segments;
  }

  const test::TemporaryFolder folder_{"join"};
};

TEST_F(KvJoin, LayersTakeTurnsOnceACellIsFull) {
  const auto cache = open(options("sketch", "s.tls"));
  const Timeline timeline = std::move(*cache->start());
  go(cache.get(), timeline, kSteady + kCell, Pass::decode);
  EXPECT_EQ(segments(cache.get(), timeline, "s.tls"), kLayers * kJoin);
  for (std::uint32_t joined = 1; joined <= kLayers; ++joined) {
    go(cache.get(), timeline, 1, Pass::decode);
    EXPECT_EQ(segments(cache.get(), timeline, "s.tls"), (kLayers - joined) * kJoin + joined);
  }
  // A next cell is one of its own.
  go(cache.get(), timeline, kCell, Pass::decode);
  EXPECT_EQ(segments(cache.get(), timeline, "s.tls"), 2 * kLayers);
}

TEST_F(KvJoin, WhatIsHalfACellStaysAndWhatFollowsItIsJoined) {
  const auto cache = open(options("sketch", "s.tls"));
  const Timeline timeline = std::move(*cache->start());
  go(cache.get(), timeline, kSteady + kCell / 2, Pass::prefill);  // one segment
  go(cache.get(), timeline, kCell / 2 + kLayers, Pass::decode);
  EXPECT_EQ(segments(cache.get(), timeline, "s.tls"), 2 * kLayers);
  // A prompt that fills the cell, and less than another, leaves what is before it to the next
  // steps.
  go(cache.get(), timeline, kSeal, Pass::decode);
  go(cache.get(), timeline, kSeal, Pass::decode);
  go(cache.get(), timeline, kCell + kSeal, Pass::prefill);
  EXPECT_EQ(segments(cache.get(), timeline, "s.tls"), 5 * kLayers);
  go(cache.get(), timeline, kLayers, Pass::decode);
  EXPECT_EQ(segments(cache.get(), timeline, "s.tls"), 4 * kLayers);
}

TEST_F(KvJoin, IsWhatWouldHaveBeenSealedAtOnce) {
  for (const bool joins : {true, false}) {
    CacheOptions in_memory = options("sketch"), sealed = options("sketch");
    if (!joins) in_memory.method_overrides.back() = "steady.join=0";
    const auto cache = open(in_memory), other = open(sealed);
    const Timeline timeline = std::move(*cache->start()), copied = std::move(*other->start());
    go(cache.get(), timeline, kSteady + kCell + kLayers, Pass::decode);
    const Status done = other->copy(timeline, copied);
    ASSERT_TRUE(done) << done.error().message;
    EXPECT_EQ(
        go(cache.get(), timeline, 3, Pass::decode) == go(other.get(), copied, 3, Pass::decode),
        joins);
  }
}

TEST_F(KvJoin, GoesOnFromASessionWhereItWas) {
  const auto cache = open(options("sketch", "s.tls"));
  Timeline timeline = std::move(*cache->start());
  go(cache.get(), timeline, kSteady + kCell - 1, Pass::decode);
  for (std::uint32_t turn = 0; turn < kLayers + 2; ++turn) {
    SCOPED_TRACE(turn);
    segments(cache.get(), timeline, "s.tls");
    const std::string copy = std::to_string(turn) + ".tls";
    fs::copy_file(folder_.path() + "/s.tls", folder_.path() + "/" + copy);
    CacheOptions held = options("sketch", copy);
    held.course.emplace().resumed = read_session(held.session.path)->held;
    const auto other = open(held);
    const auto resumed = other->resume();
    ASSERT_TRUE(resumed) << resumed.error().message;
    const Timeline fork = std::move(*timeline.fork());
    EXPECT_EQ(go(cache.get(), fork, kLayers + 3, Pass::decode),
              go(other.get(), *resumed, kLayers + 3, Pass::decode));
    go(cache.get(), timeline, 1, Pass::decode);
  }
}

// Else a selection of one layer would name segments that another has not.
TEST_F(KvJoin, LayersThatShareASelectionAreJoinedTogether) {
  CacheOptions shared = options("tidaldecode", "s.tls");
  shared.layers.assign(kLayers, plain_layer(2, 3, 32, 48));
  for (const char* more : {"select.choose_in=0", "select.dense_layers=0"})
    shared.method_overrides.push_back(more);
  const auto cache = open(shared);
  const Timeline timeline = std::move(*cache->start());
  go(cache.get(), timeline, kSteady + kCell, Pass::decode);
  EXPECT_EQ(segments(cache.get(), timeline, "s.tls"), kLayers * kJoin);
  go(cache.get(), timeline, 1, Pass::decode);
  EXPECT_EQ(segments(cache.get(), timeline, "s.tls"), kLayers);
}

TEST_F(KvJoin, OnlyWhereItIsWorthItAndNothingIsLost) {
  for (const auto& [method, joined] : {std::pair<std::string, bool>{"exact", false},
                                       {"sketch_int8", false},
                                       {"sketch2", true},
                                       {"quest", true}}) {
    const auto cache = open(options(method, method + ".tls"));
    const Timeline timeline = std::move(*cache->start());
    go(cache.get(), timeline, kSteady + kCell + kLayers, Pass::decode);
    EXPECT_EQ(segments(cache.get(), timeline, method + ".tls"), kLayers * (joined ? 1 : kJoin))
        << method;
  }
}

// With nothing to spare: what is there twice meanwhile is planned, and so is what the last save has
// of what was joined since.
TEST_F(KvJoin, ItsMemoryIsPlanned) {
  for (const std::string& file : {std::string(), std::string("s.tls")}) {
    for (const bool is_known : {false, true}) {
      SCOPED_TRACE(file + (is_known ? " known" : ""));
      fs::remove(folder_.path() + "/s.tls");
      CacheOptions made = options("sketch", file);
      made.max_positions = kSteady + 3 * kCell + kLayers;
      Course course;
      course.reads = {100};
      if (is_known) made.course = course;
      if (file.empty()) made.tiers.disk_bytes = std::uint64_t{1} << 30;
      const auto cache = open_with_nothing_to_spare(made);
      const Timeline timeline = std::move(*cache->start());
      go(cache.get(), timeline, 100, Pass::prefill);
      while (timeline.length() < made.max_positions) {
        // When a cell is nearly full.
        if (!file.empty() && (timeline.length() - kSteady) % kCell == kCell - 1)
          segments(cache.get(), timeline, file);
        ASSERT_EQ(go(cache.get(), timeline, 1, Pass::decode).empty(), false);
      }
    }
  }
}

TEST_F(KvJoin, ItsMemoryIsPlannedOfManyShortPrompts) {
  CacheOptions made = options("sketch", "s.tls");
  made.max_positions = kSteady + 24 * kSeal + 300;
  const auto cache = open_with_nothing_to_spare(made);
  const Timeline timeline = std::move(*cache->start());
  for (int i = 0; i < 24; ++i) go(cache.get(), timeline, kSeal, Pass::prefill);
  segments(cache.get(), timeline, "s.tls");
  while (timeline.length() < made.max_positions)
    ASSERT_FALSE(go(cache.get(), timeline, 1, Pass::decode).empty());
}

// Layers that have joined different cells: none of them is cut as finely as all are together.
TEST_F(KvJoin, WhatIsResumedIsPlannedOfEveryLayer) {
  {
    const auto cache = open(options("sketch", "s.tls"));
    const Timeline timeline = std::move(*cache->start());
    go(cache.get(), timeline, kSteady + kSeal + 2, Pass::prefill);
    for (int i = 1; i < 4; ++i) go(cache.get(), timeline, kSeal, Pass::prefill);
    go(cache.get(), timeline, 1, Pass::decode);  // the last layer joins the first cell
    for (int i = 1; i < 4; ++i) go(cache.get(), timeline, kSeal, Pass::prefill);
    go(cache.get(), timeline, kSeal + 2, Pass::prefill);
    go(cache.get(), timeline, 2, Pass::decode);  // and the other two the second one
    EXPECT_EQ(segments(cache.get(), timeline, "s.tls"), kLayers * (kJoin + 1));
  }
  CacheOptions held = options("sketch", "s.tls");
  held.course.emplace().resumed = read_session(held.session.path)->held;
  held.max_positions = held.course->resumed.positions + 3;
  held.session.text_bytes = 1024;
  const auto cache = open_with_nothing_to_spare(held);
  const auto resumed = cache->resume();
  ASSERT_TRUE(resumed) << resumed.error().message;
  while (resumed->length() < held.max_positions)
    ASSERT_FALSE(go(cache.get(), *resumed, 1, Pass::decode).empty());
  segments(cache.get(), *resumed, "s.tls");
}

// A plan of a long text is asked for before anything is done.
TEST_F(KvJoin, ALongTextIsPlannedAtOnce) {
  CacheOptions made = options("sketch");
  made.max_positions = 1u << 28;
  made.course.emplace().reads = {100};
  made.tiers.disk_bytes = std::uint64_t{1} << 50;
  const auto begun = std::chrono::steady_clock::now();
  (void)KvCache::plan(made, 2);  // fits or is refused
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(20));
}

TEST(NextJoint, IsTheFirstStretchOfShortOnesInAFullCell) {
  Method method = std::move(*load_method("sketch", kMethods, {}, **choose_cpu_table("auto")));
  method.seal = 64;
  method.join = 8;  // cells of 512 rows
  const auto due = [&](const std::vector<std::uint32_t>& rows, std::size_t from = 0) {
    const auto joint = next_joint(
        method, rows.size(), [&](std::size_t i) { return rows[i]; }, from);
    return joint ? std::vector<std::size_t>{joint->first, joint->count, joint->rows}
                 : std::vector<std::size_t>{};
  };
  using Is = std::vector<std::size_t>;
  EXPECT_EQ(due({}), Is());
  EXPECT_EQ(due({64, 64, 64, 64, 64, 64, 64}), Is()) << "not full";
  EXPECT_EQ(due({64, 64, 64, 64, 64, 64, 64, 64}), (Is{0, 8, 512}));
  EXPECT_EQ(due({512, 512, 64, 128, 192, 64, 64, 64}), (Is{2, 5, 512}));
  EXPECT_EQ(due({256, 64, 192, 64}), (Is{1, 2, 256})) << "half a cell stays";
  EXPECT_EQ(due({64, 64, 256, 64, 64}), (Is{0, 2, 128}));
  EXPECT_EQ(due({64, 64, 256, 64, 64}, 2), (Is{3, 2, 128}));
  EXPECT_EQ(due({64, 64, 448, 64}), (Is{0, 2, 128})) << "up to one that crosses the line";
  EXPECT_EQ(due({128, 448, 64, 64, 64, 64, 64, 64, 64}), (Is{2, 7, 448}));
  EXPECT_EQ(due({320, 192, 512, 64}), Is()) << "nothing to join it with";
  method.seal =
      192;  // a cell of joints that ends where no segment may cross: 8064 = 5 * 1536 + 384
  EXPECT_EQ(method.cell_rows(), 8064u);
  EXPECT_EQ(method.joint_line(7680), 8064u);
  EXPECT_EQ(method.joint_line(8064), 8064u + 1536);
  EXPECT_EQ(due({7680, 192, 192}), (Is{1, 2, 384}));
  // 0, 1536 ... 7680, 8064, 9600
  for (const auto& [sealed, first] :
       std::vector<std::pair<std::uint32_t, std::uint32_t>>{{0, 0},
                                                            {1535, 0},
                                                            {1536, 0},
                                                            {3071, 0},
                                                            {3072, 1536},
                                                            {7680, 6144},
                                                            {8063, 6144},
                                                            {8064, 7680},
                                                            {9599, 7680},
                                                            {9600, 8064}})
    EXPECT_EQ(newest_cell(method, sealed), first) << sealed;
}

}  // namespace
}  // namespace thermocline
