// A real model's tokens with its cache in memory, over a disk and almost all on the disk: the same
// to the last one, whatever reads the disk and however many threads compute.
#include <gtest/gtest.h>

#include <cstdio>
#include <iterator>
#include <optional>
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
// The last ones are read by calls of their own, so that a prefill too reads what was sealed before
// it. Each leaves a short segment, as does the first token that is written after the first prompt:
// with those a cell of three is full, and in the next steps each layer has its turn to join them.
constexpr std::size_t kPart = 64, kLastParts = 2;
constexpr const char* kJoin = "steady.join=3";

struct Prompt {
  const char* name;
  std::size_t tokens = 0;  // its first; 0: all of them
};
// The first few in every run; all of them take an hour.
constexpr std::size_t kFew = 2;
constexpr Prompt kPrompts[] = {
    {"code_7k", 1171}, {"prose_2k"},     {"keys_7k", 1536}, {"chat_4k", 2048}, {"license_7k", 3000},
    {"chat_4k"},       {"code_heap_4k"}, {"code_shell_4k"}, {"copy_4k"},       {"keys_4k"},
    {"languages_4k"},  {"license_4k"},   {"log_4k"},        {"manual_4k"},     {"table_4k"},
    {"copy_7k", 5500}, {"code_7k"},      {"copy_7k"},       {"keys_7k"},       {"license_7k"}};

// How many thousandths of the rows on the disk have a copy in host memory; without a disk that
// memory is their home.
enum class Cached : std::uint32_t { none = 0, some = 60, half = 500 };

struct Placement {
  const char* name;
  std::uint64_t disk_bytes;
  Cached cached;
  const char* backend;
  int threads;
  std::uint64_t device_permille = 0;  // of all rows, at home on the device
};
constexpr std::uint64_t kDisk = std::uint64_t{1} << 30;
constexpr Placement kPlacements[] = {
    {"all in memory, 2 threads", 0, Cached::none, "auto", 2},
    {"half cached, uring, 1 thread", kDisk, Cached::half, "uring", 1},
    {"all on disk, pread, 2 threads", kDisk, Cached::none, "threads", 2},
    {"three tiers, uring, 2 threads", kDisk, Cached::some, "uring", 2, 300},
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

std::uint64_t device_bytes(const Engine& engine, CacheOptions options, std::uint64_t permille) {
  options.tiers.device_bytes = std::uint64_t{1} << 30;
  const auto plan = engine.plan(options);
  if (!plan) throw std::runtime_error(plan.error().message);
  return plan->total("device") * permille / 1000;
}

struct Answer {
  std::vector<std::size_t> tokens;
  std::vector<float> last_logits;
  std::uint64_t rows_joined = 0;
};

class PlacementOfAModel : public testing::TestWithParam<const char*> {
 protected:
  static Answer generate(const std::string& model, const Prompt& text, const Placement& placement);
};

Answer PlacementOfAModel::generate(const std::string& model, const Prompt& text,
                                   const Placement& placement) {
  const auto engine = Engine::open({.model_path = model, .threads = placement.threads});
  if (!engine) throw std::runtime_error(engine.error().message);
  auto prompt =
      (*engine)->encode(test::read_prompt(text.name), Engine::Special::parse, Engine::Start::add);
  if (!prompt) throw std::runtime_error(prompt.error().message);
  if (text.tokens > 0) prompt->resize(text.tokens);
  CacheOptions options;
  options.method = GetParam();
  options.method_directory = THERMOCLINE_SOURCE_DIR "/configs/methods";
  options.method_overrides = {kJoin};
  options.max_positions = static_cast<std::uint32_t>(prompt->size() + kGenerated);
  options.tiers.disk_bytes = placement.disk_bytes;
  options.tiers.directory = THERMOCLINE_BINARY_DIR "/tests";
  options.tiers.io_backend = placement.backend;
  if (placement.device_permille > 0) {
    options.tiers.device = "host";
    options.tiers.device_bytes = device_bytes(**engine, options, placement.device_permille);
  }
  if (placement.disk_bytes > 0)
    options.tiers.host_bytes = host_bytes(**engine, options, placement.cached);
  const auto cache = (*engine)->open_cache(options);
  if (!cache) throw std::runtime_error(cache.error().message);
  auto timeline = (*cache)->start();

  Answer answer;
  std::vector<float>& logits = answer.last_logits;
  logits.resize((*engine)->model().vocabulary);
  const std::span<const int> all(*prompt);
  const std::size_t first = all.size() - kLastParts * kPart;
  EXPECT_TRUE((*engine)->prefill(*timeline, all.first(first), {}, {}));
  const CacheReport sealed = (*cache)->report();
  for (std::size_t at = first; at < all.size(); at += kPart)
    EXPECT_TRUE((*engine)->prefill(*timeline, all.subspan(at, kPart), logits, {}));
  const CacheReport read = (*cache)->report();
  for (std::size_t i = 0; i < kGenerated; ++i) {
    answer.tokens.push_back(test::best_of(logits));
    const Feed feed{&*timeline, static_cast<int>(answer.tokens.back())};
    EXPECT_TRUE((*engine)->step({&feed, 1}, {logits.data(), 1, logits.size()}));
  }
  const CacheReport end = (*cache)->report();
  answer.rows_joined = end.rows_joined;

  const bool disk = placement.disk_bytes > 0, copies = placement.cached != Cached::none;
  const CacheReport last_part = difference(read, sealed), decoded = difference(end, read);
  for (const CacheReport& part : {last_part, decoded}) {
    EXPECT_EQ(part.disk_bytes_read > 0, disk);
    EXPECT_EQ(part.device_bytes_read > 0, placement.device_permille > 0);
    EXPECT_EQ(part.pages_verified > 0, disk);
    EXPECT_EQ(part.row_cache_hits > 0, copies);
  }
  EXPECT_EQ(last_part.host_bytes_read > 0, !disk || copies);
  EXPECT_GT(decoded.host_bytes_read, 0u);  // of sinks and tail
  EXPECT_EQ(end.disk_bytes_written > 0, disk);
  EXPECT_EQ((*cache)->usage().total("disk") > 0, disk);
  EXPECT_EQ((*cache)->usage().total("device") > 0, placement.device_permille > 0);
  const auto megabytes = [](std::uint64_t bytes) { return static_cast<double>(bytes) / 1e6; };
  std::printf(
      "%s, %zu tokens, %s: read %.1f MB on the device, %.1f MB in memory, %.1f MB from disk\n",
      text.name, prompt->size(), placement.name, megabytes(end.device_bytes_read),
      megabytes(end.host_bytes_read), megabytes(end.disk_bytes_read));
  return answer;
}

TEST_P(PlacementOfAModel, NeverChangesAToken) {
  const auto path = test::find_model(kModel);
  if (!path) GTEST_SKIP() << test::model_missing(kModel);
  const std::size_t prompts = test::every_prompt() ? std::size(kPrompts) : kFew;
  for (const Prompt& prompt : std::span(kPrompts).first(prompts)) {
    std::optional<Answer> first;
    for (const Placement& placement : kPlacements) {
      SCOPED_TRACE(std::string(prompt.name) + ", " + placement.name);
      Answer answer = generate(*path, prompt, placement);
      if (!first) first = answer;
      EXPECT_EQ(answer.tokens, first->tokens);
      EXPECT_EQ(answer.last_logits, first->last_logits);
      EXPECT_EQ(answer.rows_joined, first->rows_joined);
    }
    if (&prompt == kPrompts && GetParam() == std::string("sketch")) {
      EXPECT_EQ(first->rows_joined, 30u * 3 * kPart);  // in each layer
    }
  }
  std::printf("%zu of %zu prompts, each in %zu placements (%s=1: all)\n", prompts,
              std::size(kPrompts), std::size(kPlacements), test::kEveryPrompt);
}

std::string name_of(const testing::TestParamInfo<const char*>& info) { return info.param; }
INSTANTIATE_TEST_SUITE_P(Golden, PlacementOfAModel, testing::Values("exact", "sketch"), name_of);

}  // namespace
}  // namespace thermocline
