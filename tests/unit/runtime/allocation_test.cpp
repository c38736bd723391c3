// A token's step takes no memory: every operator new of this program is counted, and buffers, which
// come from elsewhere, are seen in a cache's usage. And where one of them finds none, nothing has
// changed.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <thread>

#include "runtime/method.h"
#include "runtime/thermocline.h"
#include "tests/support/allocations.h"
#include "tests/support/dense_oracle.h"
#include "tiers/io/descriptor.h"
#include "tiers/io/sink.h"

namespace thermocline {
namespace {

using test::allocations;
using test::kNone;
using test::refused;

LayerSpec layer(std::uint32_t q_heads, std::uint32_t kv_heads, std::uint32_t dim,
                std::uint32_t window = 0) {
  LayerSpec spec;
  spec.q_heads = q_heads;
  spec.kv_heads = kv_heads;
  spec.key_dim = spec.value_dim = dim;
  spec.window = window;
  spec.scale = 0.2f;
  return spec;
}

std::uint64_t workspace(const KvCache& cache) { return cache.usage().total(kWorkspace); }

// Random rows for each layer, the same at every step: what is counted is the cache's own.
class Steps {
 public:
  Steps(KvCache* cache, std::uint32_t most_rows) : cache_(*cache) {
    std::mt19937 random(3);
    for (const LayerSpec& s : cache_.layers()) {
      layers_.push_back({random_rows(random, most_rows * s.kv_heads * s.key_dim),
                         random_rows(random, most_rows * s.q_heads * s.key_dim, 2.0f),
                         std::vector<float>(most_rows * s.q_heads * s.value_dim)});
    }
    at_.reserve(most_rows);
  }
  void advance(std::span<const Timeline> timelines, std::uint32_t rows_each, Pass pass) {
    attend(timelines, rows_each, pass);
    ASSERT_TRUE(cache_.commit());
  }
  // All but the commit.
  void attend(std::span<const Timeline> timelines, std::uint32_t rows_each, Pass pass) {
    at_.clear();
    for (const Timeline& timeline : timelines)
      for (std::uint32_t r = 0; r < rows_each; ++r)
        at_.push_back({timeline.id(), timeline.length() + r});
    ASSERT_TRUE(cache_.begin(at_, pass));
    for (std::uint32_t l = 0; l < layers_.size(); ++l) {
      const LayerSpec& s = cache_.layers()[l];
      const std::size_t n = at_.size(), k = s.kv_heads * s.key_dim, q = s.q_heads * s.key_dim;
      auto& [keys, queries, out] = layers_[l];
      ASSERT_TRUE(cache_.append(LayerId{l}, {keys.data(), n, k}, {keys.data(), n, k}));
      ASSERT_TRUE(cache_.attend(LayerId{l}, {queries.data(), n, q}, {out.data(), n, q}));
    }
  }
  // What the last step's last row attended, of all layers.
  std::vector<float> answers() const {
    std::vector<float> all;
    for (std::uint32_t l = 0; l < layers_.size(); ++l) {
      const std::size_t q = cache_.layers()[l].q_heads * cache_.layers()[l].value_dim;
      const auto first = layers_[l].out.begin() + static_cast<std::ptrdiff_t>((at_.size() - 1) * q);
      all.insert(all.end(), first, first + static_cast<std::ptrdiff_t>(q));
    }
    return all;
  }

 private:
  struct Layer {
    std::vector<float> keys, queries, out;
  };
  KvCache& cache_;
  std::vector<Layer> layers_;
  std::vector<Token> at_;
};

const std::string kMethods = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";

Result<std::unique_ptr<KvCache>> open(const std::string& method, bool disk,
                                      std::uint32_t timelines) {
  CacheOptions options;
  options.layers = {layer(6, 2, 32), layer(4, 1, 48), layer(4, 2, 32, 100)};
  options.method = method;
  options.method_directory = kMethods;
  // What is decoded below begins and ends between two seals.
  options.method_overrides = {"steady.seal=512", "steady.sink=4", "steady.recent=32"};
  options.max_positions = 4000;
  options.max_timelines = timelines;
  options.tiers.directory = ::testing::TempDir() + "thermocline-allocation";
  options.tiers.disk_bytes = disk ? std::uint64_t{64} << 20 : 0;
  options.tiers.io_backend = "threads";
  return KvCache::create(options, 1, "auto");
}

// Lists and tables of reads grow when a step needs more than any before, so the same stretch is
// decoded again: once with the rows in the row cache that it brought there, and then counted.
TEST(Allocation, AStepThatSealsNothingAllocatesNothing) {
  for (const std::string& method : method_names(kMethods))
    for (const bool disk : {false, true}) {
      if (method.starts_with("faiss_")) continue;  // its searches allocate, as their header says
      SCOPED_TRACE(method + (disk ? ", disk" : ", host"));
      auto cache = open(method, disk, 1);
      ASSERT_TRUE(cache) << cache.error().message;
      Timeline timeline = std::move(*(*cache)->start());
      Steps steps(cache->get(), 1126);
      steps.advance({&timeline, 1}, 1126, Pass::prefill);
      std::uint64_t counted = 0;
      for (int time = 0; time < 3; ++time) {
        ASSERT_TRUE(timeline.truncate(1126));
        const std::uint64_t before = allocations, sealed = (*cache)->report().rows_sealed;
        for (int i = 0; i < 120; ++i) steps.advance({&timeline, 1}, 1, Pass::decode);
        counted = allocations - before;
        EXPECT_EQ((*cache)->report().rows_sealed, sealed);
      }
      EXPECT_EQ(counted, 0u);
    }
}

// Not in any step from the first one on, to the last position.
TEST(Allocation, TheWorkspaceOfDecodeIsThereWhenATimelineStarts) {
  for (const char* method : {"exact", "sketch", "ladder4", "h2o"}) {
    SCOPED_TRACE(method);
    auto cache = open(method, false, 3);
    ASSERT_TRUE(cache) << cache.error().message;
    std::vector<Timeline> timelines;
    std::uint64_t before = workspace(**cache);
    for (int i = 0; i < 3; ++i) {
      timelines.push_back(std::move(*(*cache)->start()));
      EXPECT_GT(workspace(**cache), before);
      before = workspace(**cache);
    }
    Steps steps(cache->get(), 3000);
    for (int i = 0; i < 1000; ++i) steps.advance(timelines, 1, Pass::decode);
    for (int i = 0; i < 900; ++i) steps.advance({&timelines[1], 1}, 3, Pass::decode);
    EXPECT_EQ(workspace(**cache), before);
    steps.advance(timelines, 2, Pass::decode);  // more rows than timelines
    EXPECT_GT(workspace(**cache), before);
  }
}

// Its last allocations find nothing, one after the other: those that come when all is formed.
TEST(Allocation, ACommitThatFindsNoMemoryChangesNothing) {
  for (const Pass pass : {Pass::decode, Pass::prefill}) {
    SCOPED_TRACE(pass == Pass::decode ? "decode" : "prefill");
    const std::uint32_t rows = pass == Pass::decode ? 1 : 600;
    std::uint64_t needed = 0;      // by the commit that seals first
    std::uint32_t sealing_at = 0;  // the timeline's length before it
    std::vector<float> answers;    // of the step after it
    {
      auto cache = open("exact", false, 1);
      ASSERT_TRUE(cache) << cache.error().message;
      Timeline timeline = std::move(*(*cache)->start());
      Steps steps(cache->get(), rows);
      while ((*cache)->report().rows_sealed == 0) {
        sealing_at = timeline.length();
        steps.attend({&timeline, 1}, rows, pass);
        const std::uint64_t before = allocations;
        ASSERT_TRUE((*cache)->commit());
        needed = allocations - before;
      }
      steps.advance({&timeline, 1}, 1, Pass::decode);
      answers = steps.answers();
    }
    ASSERT_GE(needed, 2u);  // room for a run in each of two layers
    for (std::uint64_t left = 1; left <= 2; ++left) {
      SCOPED_TRACE(left);
      auto cache = open("exact", false, 1);
      ASSERT_TRUE(cache) << cache.error().message;
      Timeline timeline = std::move(*(*cache)->start());
      Steps steps(cache->get(), rows);
      while (timeline.length() < sealing_at) steps.advance({&timeline, 1}, rows, pass);
      steps.attend({&timeline, 1}, rows, pass);
      refused = allocations + needed - left;
      bool thrown = false;
      try {
        (void)(*cache)->commit();
      } catch (const std::bad_alloc&) {
        thrown = true;
      }
      refused = kNone;
      EXPECT_TRUE(thrown);
      EXPECT_EQ(timeline.length(), sealing_at);
      (*cache)->rollback();
      steps.advance({&timeline, 1}, rows, pass);
      steps.advance({&timeline, 1}, 1, Pass::decode);
      EXPECT_EQ(steps.answers(), answers);
    }
  }
}

// The last hundred allocations of a cut, one after the other, which are of the second layer when
// the first has been formed anew.
TEST(Allocation, ACutThatFindsNoMemoryChangesNothing) {
  auto cache = open("exact", false, 2);
  ASSERT_TRUE(cache) << cache.error().message;
  Timeline whole = std::move(*(*cache)->start());
  Steps steps(cache->get(), 2100);
  steps.advance({&whole, 1}, 2100, Pass::prefill);
  std::uint64_t needed = 0;
  for (int time = 0; time < 2; ++time) {  // the first one's scratch stays
    Timeline cut = std::move(*whole.fork());
    const std::uint64_t before = allocations;
    ASSERT_TRUE(cut.truncate(2000));
    needed = allocations - before;
  }
  steps.advance({&whole, 1}, 1, Pass::decode);
  const std::vector<float> answers = steps.answers();
  ASSERT_TRUE(whole.truncate(2100));
  int thrown = 0;
  for (std::uint64_t left = 100; left > 0; --left) {
    Timeline cut = std::move(*whole.fork());
    bool made = false;  // where what found no memory could do without
    refused = allocations + needed - left;
    try {
      made = cut.truncate(2000).has_value();
    } catch (const std::bad_alloc&) {
      ++thrown;
    }
    refused = kNone;
    ASSERT_EQ(cut.length(), made ? 2000u : 2100u) << left;
    if (made) continue;
    for (int step = 0; step < 2; ++step) steps.advance({&cut, 1}, 1, Pass::decode);
    ASSERT_TRUE(cut.truncate(2100));
    steps.advance({&cut, 1}, 1, Pass::decode);
    ASSERT_EQ(steps.answers(), answers) << left;
  }
  EXPECT_GT(thrown, 10);
}

class SinkAllocation : public ::testing::TestWithParam<std::string_view> {};

// All of them waiting, and all of them complete before one is polled.
TEST_P(SinkAllocation, NoneForTransfersThatItHasRoomFor) {
  constexpr std::size_t kTransfers = 1000;
  const auto chosen = open_sink(GetParam(), {.depth = 32, .threads = 4});
  if (!chosen && GetParam() != sink_names().back()) GTEST_SKIP() << chosen.error().message;
  ASSERT_TRUE(chosen) << chosen.error().message;
  Sink& sink = *chosen->sink;
  const Descriptor file(::memfd_create("thermocline-allocation", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(file.number(), kPageBytes), 0);
  std::vector<std::byte> memory(kTransfers * kPageBytes);
  std::vector<Transfer> transfers;
  for (std::size_t i = 0; i < kTransfers; ++i)
    transfers.push_back(
        {.file = file.number(), .bytes = {memory.data() + i * kPageBytes, kPageBytes}, .tag = i});
  std::vector<Completion> done(kTransfers);
  sink.reserve(kTransfers);
  const std::uint64_t before = allocations;
  for (int time = 0; time < 3; ++time) {
    ASSERT_TRUE(sink.submit(transfers));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    for (std::size_t left = kTransfers; left > 0;) {
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
      const auto count = sink.poll(done, deadline);
      ASSERT_TRUE(count && *count > 0);
      left -= *count;
    }
  }
  EXPECT_EQ(allocations - before, 0u);
}

INSTANTIATE_TEST_SUITE_P(Backends, SinkAllocation, ::testing::ValuesIn(sink_names()),
                         [](const auto& suite) { return std::string(suite.param); });

TEST(Allocation, AStepOfAModelAllocatesNothing) {
  auto engine = Engine::open(
      {.model_path = std::string(THERMOCLINE_SOURCE_DIR) + "/tests/golden/tiny/llama_f32.gguf",
       .threads = 1});
  ASSERT_TRUE(engine) << engine.error().message;
  CacheOptions options{.max_positions = 900};
  options.method_directory = kMethods;
  auto cache = (*engine)->open_cache(options);
  ASSERT_TRUE(cache) << cache.error().message;
  Timeline timeline = std::move(*(*cache)->start());
  std::vector<float> logits((*engine)->model().vocabulary);
  const std::vector<int> prompt(600, 5);
  ASSERT_TRUE((*engine)->prefill(timeline, prompt, logits, {}));
  const Feed feed{&timeline, 7};
  const auto step = [&] { return (*engine)->step({&feed, 1}, {logits.data(), 1, logits.size()}); };
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(step());
  const std::uint64_t before = allocations;
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(step());
  EXPECT_EQ(allocations - before, 0u);
}

}  // namespace
}  // namespace thermocline
