// Steps that join short segments over a disk in trouble: refused, with the timeline as it was, and
// done again they give the same.
#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "runtime/kv_cache.h"
#include "runtime/session.h"
#include "tests/faults/kernel_faults.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/written_rows.h"

namespace thermocline {
namespace {

constexpr std::uint32_t kSteady = 20, kSeal = 64, kJoin = 4, kFull = kSteady + kJoin * kSeal;
constexpr std::uint32_t kLayers = 3, kMore = kLayers + 3;

// One row, up to where it is committed.
Status attend_row(KvCache* cache, const Timeline& timeline, std::vector<float>* all) {
  const Token at{timeline.id(), timeline.length()};
  TL_TRY(cache->begin({&at, 1}, Pass::decode));
  all->clear();
  for (std::uint32_t l = 0; l < cache->layers().size(); ++l) {
    const LayerSpec& spec = cache->layers()[l];
    std::mt19937 random(at.position * 31 + l);
    std::normal_distribution<float> normal;
    const auto made = [&](std::size_t columns) {
      std::vector<float> values(columns);
      for (float& value : values) value = normal(random);
      return values;
    };
    const std::size_t k = spec.kv_heads * spec.key_dim, v = spec.kv_heads * spec.value_dim;
    const std::size_t q = spec.q_heads * spec.key_dim;
    const auto keys = made(k), values = made(v), queries = made(q);
    std::vector<float> out(spec.q_heads * spec.value_dim);
    TL_TRY(cache->append(LayerId{l}, {keys.data(), 1, k}, {values.data(), 1, v}));
    TL_TRY(cache->attend(LayerId{l}, {queries.data(), 1, q}, {out.data(), 1, out.size()}));
    all->insert(all->end(), out.begin(), out.end());
  }
  return {};
}

Status step(KvCache* cache, const Timeline& timeline, std::vector<float>* all) {
  TL_TRY(attend_row(cache, timeline, all));
  return cache->commit();
}

std::uint64_t held_bytes(const KvCache& cache) {
  std::uint64_t bytes = 0;
  for (const MemoryLine& line : cache.usage().lines)
    if (line.purpose != "sealing" && (line.tier == "host" || line.tier == "disk"))
      bytes += line.bytes;
  return bytes;
}

// By back end, and whether a session's file is written: over a scratch file a write that fails is
// heard of when the step ends, over a session's when the record is written.
class JoinFaults : public ::testing::TestWithParam<std::tuple<std::string, bool>> {
 protected:
  void SetUp() override {
    const auto probe = KvCache::plan(options("probe.tls"), 2);
    if (!probe) GTEST_SKIP() << probe.error().message;
  }
  bool keeps() const { return std::get<1>(GetParam()); }
  std::string path(const std::string& file) const { return folder_.path() + "/" + file; }
  CacheOptions options(const std::string& file) const {
    CacheOptions made;
    made.layers = {plain_layer(2, 3, 32, 48), plain_layer(1, 2, 64, 64),
                   plain_layer(2, 1, 32, 32, 100), plain_layer(1, 1, 48, 32)};
    made.method = "sketch";
    made.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
    made.method_overrides = {"steady.sink=4", "steady.recent=16", "steady.seal=64",
                             "steady.join=4"};
    made.max_positions = 700;
    made.tiers.io_backend = std::get<0>(GetParam());
    made.tiers.directory = folder_.path();
    if (keeps())
      made.session.path = path(file);
    else
      made.tiers.disk_bytes = std::uint64_t{1} << 30;
    return made;
  }
  // Without a row cache, so that what is joined is read from the disk.
  std::unique_ptr<KvCache> open(const std::string& file) const {
    CacheOptions made = options(file);
    const auto plan = KvCache::plan(made, 2);
    EXPECT_TRUE(plan) << plan.error().message;
    if (!plan) return nullptr;
    std::uint64_t host = 0;
    for (const MemoryLine& line : plan->lines)
      if (line.tier == "host" && line.purpose != "row_cache") host += line.bytes;
    made.tiers.host_bytes = host;
    auto cache = KvCache::create(made, 2, "auto");
    EXPECT_TRUE(cache) << cache.error().message;
    return cache ? std::move(*cache) : nullptr;
  }
  std::uint64_t saved_segments(KvCache* cache, const Timeline& timeline) const {
    const Status saved = cache->save(timeline, session_text(timeline.length()));
    EXPECT_TRUE(saved) << saved.error().message;
    const auto held = read_session(path("s.tls"));
    EXPECT_TRUE(held) << held.error().message;
    return held ? held->segments : 0;
  }

  const test::TemporaryFolder folder_{"join-faults"};
};

TEST_P(JoinFaults, AreRefusedAndTheStepCanBeDoneAgain) {
  std::vector<std::vector<float>> right(kMore);
  std::vector<float> out;
  {
    const auto cache = open("right.tls");
    ASSERT_TRUE(cache);
    const Timeline timeline = std::move(*cache->start());
    while (timeline.length() < kFull) ASSERT_TRUE(step(cache.get(), timeline, &out));
    for (std::vector<float>& due : right) ASSERT_TRUE(step(cache.get(), timeline, &due));
  }
  const auto cache = open("s.tls");
  ASSERT_TRUE(cache);
  const Timeline timeline = std::move(*cache->start());
  while (timeline.length() < kFull) ASSERT_TRUE(step(cache.get(), timeline, &out));

  const auto expect_as_before = [&](std::uint64_t held) {
    EXPECT_EQ(timeline.length(), kFull);
    EXPECT_EQ(held_bytes(*cache), held);
    if (keeps()) {
      EXPECT_EQ(saved_segments(cache.get(), timeline), kLayers * kJoin);
    }
  };
  struct Case {
    KernelFault fault;
    std::uint64_t first;  // the rows of four segments are read; rows and a record are written
    ErrorCode code;
    const char* said;
  };
  std::vector<Case> cases = {{KernelFault::io_error, 0, ErrorCode::io, "EIO"},
                             {KernelFault::io_error, 3, ErrorCode::io, "EIO"},
                             {KernelFault::flipped, 0, ErrorCode::corrupt, "twice"},
                             {KernelFault::flipped, 3, ErrorCode::corrupt, "twice"},
                             {KernelFault::write_error, 0, ErrorCode::io, "EIO"},
                             {KernelFault::full, 0, ErrorCode::io, "ENOSPC"}};
  if (keeps()) {
    cases.push_back({KernelFault::write_error, 1, ErrorCode::io, "EIO"});
    cases.push_back({KernelFault::full, 1, ErrorCode::io, "ENOSPC"});
  }
  for (const Case& c : cases) {
    SCOPED_TRACE(std::string(name_of(c.fault)) + " from " + std::to_string(c.first));
    const std::uint64_t before = held_bytes(*cache);
    ASSERT_TRUE(attend_row(cache.get(), timeline, &out));
    EXPECT_EQ(out, right.front());
    {
      KernelFaultPlan plan;
      plan.always = c.fault;
      plan.first = c.first;
      const KernelFaults faults(plan);
      const Status done = cache->commit();
      EXPECT_GT(faults.counts().total(), 0u);
      ASSERT_FALSE(done);
      EXPECT_EQ(done.error().code, c.code) << done.error().message;
      EXPECT_NE(done.error().message.find(c.said), std::string::npos) << done.error().message;
    }
    expect_as_before(before);
  }
  // No room for the rows, or for the record.
  for (int first = 0; first < (keeps() ? 2 : 1); ++first) {
    SCOPED_TRACE("no room from " + std::to_string(first));
    const std::uint64_t before = held_bytes(*cache);
    ASSERT_TRUE(attend_row(cache.get(), timeline, &out));
    EXPECT_EQ(out, right.front());
    RingRefusals full;
    full.room = ENOSPC, full.rooms = 1, full.rooms_before = first;
    set_ring_refusals(full);
    const Status done = cache->commit();
    EXPECT_EQ(ring_refusals_left().rooms, 0);
    set_ring_refusals({});
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code, ErrorCode::exhausted) << done.error().message;
    EXPECT_NE(done.error().message.find("ENOSPC"), std::string::npos) << done.error().message;
    expect_as_before(before);
  }
  if (keeps()) {  // and what was saved then goes on as if nothing had been
    std::filesystem::copy_file(path("s.tls"), path("copy.tls"));
    const auto other = open("copy.tls");
    ASSERT_TRUE(other);
    const auto resumed = other->resume();
    ASSERT_TRUE(resumed) << resumed.error().message;
    for (const std::vector<float>& due : right) {
      ASSERT_TRUE(step(other.get(), *resumed, &out));
      EXPECT_EQ(out, due);
    }
  }
  for (const std::vector<float>& due : right) {
    ASSERT_TRUE(step(cache.get(), timeline, &out));
    EXPECT_EQ(out, due);
  }
  if (keeps()) {
    EXPECT_EQ(saved_segments(cache.get(), timeline), kLayers);
  }
}

INSTANTIATE_TEST_SUITE_P(Everywhere, JoinFaults,
                         ::testing::Combine(::testing::Values("uring", "threads"),
                                            ::testing::Bool()),
                         [](const auto& suite) {
                           return std::get<0>(suite.param) +
                                  (std::get<1>(suite.param) ? "_session" : "_scratch");
                         });

}  // namespace
}  // namespace thermocline
