// A real model's tokens with its cache in memory, over a disk and almost all on the disk: the same
// to the last one, whatever reads the disk and however many threads compute.
#include <gtest/gtest.h>

#include <cstdio>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/thermocline.h"
#include "tests/support/models.h"
#include "tests/support/reader.h"

namespace thermocline {
namespace {

constexpr const char* kModel = "SmolLM2-135M-Instruct.Q4_1.gguf";
constexpr std::size_t kGenerated = 32;
// Read by a call of their own, so that a prefill too reads what was sealed before it.
constexpr std::size_t kLastPart = 64;

// How many thousandths of the rows on the disk have a copy in host memory; without a disk that
// memory is their home.
enum class Cached : std::uint32_t { none = 0, half = 500 };

struct Placement {
  const char* name;
  std::uint64_t disk_bytes;
  Cached cached;
  const char* backend;
  int threads;
};
constexpr std::uint64_t kDisk = std::uint64_t{1} << 30;
constexpr Placement kPlacements[] = {
    {"all in memory, 2 threads", 0, Cached::none, "auto", 2},
    {"part on disk, uring, 1 thread", kDisk, Cached::half, "uring", 1},
    {"part on disk, threads, 2 threads", kDisk, Cached::half, "threads", 2},
    {"almost all on disk, uring, 2 threads", kDisk, Cached::none, "uring", 2},
};

// The least host memory that does, and copies of rows in so much more.
std::uint64_t host_bytes(const Engine& engine, const CacheOptions& options, Cached cached) {
  const auto plan = engine.plan(options);
  if (!plan) throw std::runtime_error(plan.error().message);
  std::uint64_t fixed = 0;
  for (const MemoryLine& line : plan->lines)
    if (line.tier == "host" && line.purpose != "row_cache") fixed += line.bytes;
  return fixed + plan->total("disk") * static_cast<std::uint32_t>(cached) / 1000;
}

struct Answer {
  std::vector<std::size_t> tokens;
  std::vector<float> last_logits;
};

class PlacementOfAModel : public testing::TestWithParam<const char*> {
 protected:
  static Answer generate(const std::string& model, const Placement& placement);
};

Answer PlacementOfAModel::generate(const std::string& model, const Placement& placement) {
  const auto engine = Engine::open({.model_path = model, .threads = placement.threads});
  if (!engine) throw std::runtime_error(engine.error().message);
  const auto prompt =
      (*engine)->encode(test::read_prompt("prose_2k"), Engine::Special::parse, Engine::Start::add);
  if (!prompt) throw std::runtime_error(prompt.error().message);
  CacheOptions options;
  options.method = GetParam();
  options.method_directory = THERMOCLINE_SOURCE_DIR "/configs/methods";
  options.max_positions = static_cast<std::uint32_t>(prompt->size() + kGenerated);
  options.tiers.disk_bytes = placement.disk_bytes;
  options.tiers.directory = THERMOCLINE_BINARY_DIR "/tests";
  options.tiers.io_backend = placement.backend;
  if (placement.disk_bytes > 0)
    options.tiers.host_bytes = host_bytes(**engine, options, placement.cached);
  const auto cache = (*engine)->open_cache(options);
  if (!cache) throw std::runtime_error(cache.error().message);
  auto timeline = (*cache)->start();

  Answer answer;
  std::vector<float>& logits = answer.last_logits;
  logits.resize((*engine)->model().vocabulary);
  const std::span<const int> all(*prompt);
  const std::size_t first = all.size() - kLastPart;
  EXPECT_TRUE((*engine)->prefill(*timeline, all.first(first), {}, {}));
  const CacheReport sealed = (*cache)->report();
  EXPECT_TRUE((*engine)->prefill(*timeline, all.subspan(first), logits, {}));
  const CacheReport read = (*cache)->report();
  for (std::size_t i = 0; i < kGenerated; ++i) {
    answer.tokens.push_back(test::best_of(logits));
    const Feed feed{&*timeline, static_cast<int>(answer.tokens.back())};
    EXPECT_TRUE((*engine)->step({&feed, 1}, {logits.data(), 1, logits.size()}));
  }
  const CacheReport end = (*cache)->report();

  const bool disk = placement.disk_bytes > 0, copies = placement.cached != Cached::none;
  const CacheReport last_part = difference(read, sealed), decoded = difference(end, read);
  for (const CacheReport& part : {last_part, decoded}) {
    EXPECT_EQ(part.disk_bytes_read > 0, disk);
    EXPECT_EQ(part.pages_verified > 0, disk);
    EXPECT_EQ(part.row_cache_hits > 0, copies);
  }
  EXPECT_EQ(last_part.host_bytes_read > 0, !disk || copies);
  EXPECT_GT(decoded.host_bytes_read, 0u);  // of sinks and tail
  EXPECT_EQ(end.disk_bytes_written > 0, disk);
  EXPECT_EQ((*cache)->usage().total("disk") > 0, disk);
  std::printf("%s: %.1f MB read from memory, %.1f MB from disk\n", placement.name,
              static_cast<double>(end.host_bytes_read) / 1e6,
              static_cast<double>(end.disk_bytes_read) / 1e6);
  return answer;
}

TEST_P(PlacementOfAModel, NeverChangesAToken) {
  const auto path = test::find_model(kModel);
  if (!path) GTEST_SKIP() << test::model_missing(kModel);
  std::vector<Answer> answers;
  for (const Placement& placement : kPlacements) {
    SCOPED_TRACE(placement.name);
    answers.push_back(generate(*path, placement));
    EXPECT_EQ(answers.back().tokens, answers.front().tokens);
    EXPECT_EQ(answers.back().last_logits, answers.front().last_logits);
  }
}

std::string name_of(const testing::TestParamInfo<const char*>& info) { return info.param; }
INSTANTIATE_TEST_SUITE_P(Golden, PlacementOfAModel, testing::Values("exact", "sketch"), name_of);

}  // namespace
}  // namespace thermocline
